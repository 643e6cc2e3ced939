"""The vision encoders against transformers' own processors and models, with small random weights."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2l.i2l_core.encoders import NAFLEX, SQUARE, EncoderConfig, VisionEncoder, naflex_size
from i2l.i2l_core.errors import I2LError

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
}
square = EncoderConfig(SQUARE, {**SMALL, "image_size": 32}, image_size=32)
naflex = EncoderConfig(NAFLEX, {**SMALL, "num_patches": 16}, max_patches=24, resample="bilinear")
SIZES = [(32, 32), (47, 21), (20, 90), (64, 64), (64, 64)]  # (height, width)


def pictures(smooth: bool = False) -> list[torch.Tensor]:
    """8-bit pictures, as a file gives them, (H, W, 3) floats: noise, or soft blobs as a camera would give"""
    made = []
    for height, width in SIZES:
        x = torch.rand(1, 3, 4, 4) if smooth else torch.rand(1, 3, height, width)
        x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic").clamp(0, 1)
        made.append((x[0].movedim(0, -1) * 255).round() / 255)
    return made


def as_bytes(picture: torch.Tensor) -> torch.Tensor:
    return (picture * 255).round().byte().movedim(-1, 0)  # HWC -> CHW


@pytest.fixture
def encoder(request: pytest.FixtureRequest) -> VisionEncoder:
    return VisionEncoder(request.param).requires_grad_(False)


# transformers resizes bytes, in fixed point, rounding to bytes after each axis; here everything stays float:
# up to 1.5 levels of 255, over std 0.5. (On noise its bicubic also clips between the axes: 10 levels at a few
# pixels. So the comparison on bytes takes smooth pictures, the one on floats noise.)
TOLERANCE = 1.5 / 255 / 0.5


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_square_preprocessing_is_that_of_siglip(resample: str):
    from transformers import SiglipImageProcessor
    from transformers.image_utils import PILImageResampling

    config = EncoderConfig(SQUARE, square.config, image_size=32, resample=resample)
    encoder = VisionEncoder(config, device="meta")
    how = PILImageResampling.BICUBIC if resample == "bicubic" else PILImageResampling.BILINEAR
    theirs = SiglipImageProcessor(size={"height": 32, "width": 32}, resample=how)
    for picture in pictures(smooth=True):
        expected = theirs(as_bytes(picture), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(encoder.preprocess(picture), expected, rtol=0, atol=TOLERANCE)
    for picture in pictures():
        x = theirs(picture.movedim(-1, 0), return_tensors="pt", do_rescale=False)["pixel_values"][0]
        expected = x.clamp(-1, 1)  # bicubic overshoots; pictures hold 0..1
        torch.testing.assert_close(encoder.preprocess(picture), expected, rtol=0, atol=1e-5)


def test_naflex_preprocessing_is_that_of_siglip2():
    from transformers import Siglip2ImageProcessor

    encoder = VisionEncoder(naflex, device="meta")
    theirs = Siglip2ImageProcessor(patch_size=8, max_num_patches=24)
    for picture in pictures(smooth=True):
        expected = theirs(as_bytes(picture), return_tensors="pt")
        rows, columns = expected["spatial_shapes"][0].tolist()
        x = encoder.preprocess(picture)
        assert x.shape == (3, rows * 8, columns * 8)
        patches = [
            x[:, i : i + 8, j : j + 8] for i in range(0, rows * 8, 8) for j in range(0, columns * 8, 8)
        ]
        mine = torch.stack([patch.permute(1, 2, 0).flatten() for patch in patches])
        torch.testing.assert_close(mine, expected["pixel_values"][0, : len(mine)], rtol=0, atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 4000),
    width=st.integers(8, 4000),
    patch=st.sampled_from([8, 14, 16]),
    most=st.integers(16, 1024),
)
def test_naflex_sizes_are_those_of_siglip2(height: int, width: int, patch: int, most: int):
    from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

    expected = get_image_size_for_max_num_patches(height, width, patch, most)
    assert naflex_size(height, width, patch, most) == expected
    assert expected[0] * expected[1] <= most * patch * patch


def test_square_tokens_are_the_last_hidden_state_of_siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    encoder = VisionEncoder(square).requires_grad_(False)
    theirs = SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=32)).eval()
    theirs.set_attn_implementation("eager")
    theirs.load_state_dict(encoder.model.state_dict(), strict=False)  # theirs has a pooling head as well
    for picture in pictures():
        with torch.no_grad():
            expected = theirs(encoder.preprocess(picture)[None]).last_hidden_state
        torch.testing.assert_close(encoder.encode([picture]), expected, rtol=1e-5, atol=1e-5)


def test_naflex_tokens_are_those_of_the_padded_siglip2():
    from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

    encoder = VisionEncoder(naflex).requires_grad_(False)
    theirs = Siglip2VisionModel(Siglip2VisionConfig(**SMALL, num_patches=16)).eval()
    theirs.set_attn_implementation("eager")
    theirs.load_state_dict(encoder.model.state_dict(), strict=False)
    # floats in, no rounding on either side: only padding and masking differ
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=24, do_rescale=False)
    images = pictures()
    for picture, tokens in zip(images, encoder.encode_each(images), strict=True):
        with torch.no_grad():
            padded = theirs(**processor(picture.movedim(-1, 0), return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(tokens, padded[0, : len(tokens)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", [square, naflex], indirect=True)
def test_each_picture_is_encoded_on_its_own(encoder: VisionEncoder):
    images = pictures()
    each = encoder.encode_each(images)
    alone = [encoder.encode([image])[0] for image in images]
    for a, b in zip(each, alone, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-5, atol=1e-6
        )  # batched and single products round differently
    together = encoder.encode(images, batch=2)
    assert together.shape == (1, sum(len(tokens) for tokens in each), encoder.config.token_dim)
    torch.testing.assert_close(together[0], torch.cat(each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [square, naflex])
def test_a_meta_build_becomes_real_by_assigning_weights(config: EncoderConfig):
    real = VisionEncoder(config)
    built = VisionEncoder(config, device="meta")
    assert all(p.is_meta for p in built.parameters())
    built.model.load_state_dict(real.model.state_dict(), strict=True, assign=True)
    images = pictures()[:2]
    with torch.no_grad():
        torch.testing.assert_close(built.encode(images), real.encode(images), rtol=0, atol=0)


def test_gradients_reach_every_parameter():
    encoder = VisionEncoder(square)
    encoder(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name


def test_bf16_is_close_to_fp32():
    encoder = VisionEncoder(square).requires_grad_(False)
    images = pictures()
    full = encoder.encode(images)
    half = encoder.to(torch.bfloat16).encode(images)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.03  # 8 bits of mantissa through two blocks


@pytest.mark.parametrize("config", [square, naflex])
def test_it_runs_under_the_hosts_memory_management(host: object, config: EncoderConfig):
    import comfy.model_management as mm
    import comfy.model_patcher

    encoder = VisionEncoder(config).requires_grad_(False)
    images = pictures()
    expected = encoder.encode(images)
    patcher = comfy.model_patcher.CoreModelPatcher(encoder, mm.get_torch_device(), mm.unet_offload_device())
    mm.load_models_gpu([patcher])
    torch.testing.assert_close(encoder.encode(images), expected, rtol=0, atol=0)
    patcher.detach()
    torch.testing.assert_close(encoder.encode(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("config", [square, naflex])
def test_a_config_survives_json(config: EncoderConfig):
    assert EncoderConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


BAD = {
    "kind": ({"kind": "dinov3"}, "encoder kind must be siglip_vision_model or siglip2_vision_model"),
    "kind type": ({"kind": ["siglip_vision_model"]}, "encoder kind must be"),
    "unknown": ({"hub": "google/siglip2"}, "unknown entries: hub"),
    "no config": ({"config": None}, "encoder config must be a JSON object"),
    "size": ({"config": {**SMALL, "image_size": 32, "hidden_size": 0}}, "hidden_size must be a whole number"),
    "huge": (
        {"config": {**SMALL, "image_size": 32, "num_hidden_layers": 10**9}},
        "num_hidden_layers must be",
    ),
    "missing": ({"config": {"image_size": 32}}, "encoder config lacks hidden_size, intermediate_size"),
    "heads": ({"config": {**SMALL, "image_size": 32, "num_attention_heads": 5}}, "not a multiple"),
    "code": ({"config": {**SMALL, "image_size": 32, "auto_map": "x.py"}}, "unknown entries: auto_map"),
    "activation": ({"config": {**SMALL, "image_size": 32, "hidden_act": "swish9"}}, "hidden_act 'swish9'"),
    "other size": ({"image_size": 64}, "image_size 64 does not fit its config: 32"),
    "float size": ({"image_size": 32.0}, "image_size must be a whole number"),
    "std": ({"std": [0.5, 0.5, 0]}, "encoder std must be a number above 0"),
    "nan": ({"mean": [float("nan"), 0, 0]}, "encoder mean must be a number"),
    "resample": ({"resample": "lanczos"}, "resample must be bicubic or bilinear"),
    "mixed": ({"max_patches": 4}, "no max_patches"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_impossible_config_is_refused(case: str):
    change, message = BAD[case]
    with pytest.raises(I2LError, match=message):
        EncoderConfig.from_json({**square.to_json(), **change})


def test_transformers_is_not_imported_before_it_is_needed():
    import subprocess
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    code = (
        "import sys, types; m = types.ModuleType('i2l'); m.__path__ = [sys.argv[1]]; sys.modules['i2l'] = m\n"
        "import i2l.i2l_core.encoders, i2l.i2l_core.predictors.query.file\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=60)
