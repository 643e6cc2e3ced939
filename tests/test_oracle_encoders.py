"""The pooled encoders against diffsynth's own classes (PyPI, 2.1.12): same files, same pictures, same numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_encoders import TINY, save_encoder

from i2l.i2l_core.encoders import DINOV3, SIGLIP2, PooledConfig, PooledEncoder, load_pooled
from i2l.i2l_core.encoders.cover import cover

# the two files as published, and their hashes in diffsynth/configs/model_configs.py
FULL = {
    SIGLIP2: PooledConfig(SIGLIP2, width=1536, blocks=40, mlp=6144, patch=16, side=384),
    DINOV3: PooledConfig(DINOV3, width=4096, blocks=40, mlp=8192, patch=16, side=224, registers=4),
}
REGISTERED = {
    "siglip2_image_encoder": (SIGLIP2, "469c78b61e3e31bc9eec0d0af3d3f2f8"),
    "dinov3_image_encoder": (DINOV3, "5722b5c873720009de96422993b15682"),
}


def bytes_of(height: int, width: int, smooth: bool = True) -> np.ndarray:
    """(H, W, 3) uint8: soft blobs as a camera would give, or noise"""
    size = (4, 4) if smooth else (height, width)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, *size), (height, width), mode="bicubic")
    return (x.clamp(0, 1)[0].movedim(0, -1) * 255).round().byte().numpy()


def picture(kind: str) -> Image.Image:
    """A picture of an odd size or mode, as a file may hold it."""
    if kind == "palette":
        return Image.fromarray(bytes_of(90, 61)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    if kind == "alpha":
        return Image.fromarray(np.concatenate([bytes_of(50, 77), bytes_of(50, 77)[..., :1]], -1))
    if kind == "gray":
        return Image.fromarray(bytes_of(40, 40)[..., 0])
    if kind == "16 bit":
        return Image.fromarray(bytes_of(65, 50)[..., 0].astype(np.uint16) * 257)
    width, height = map(int, kind.split("x"))
    return Image.fromarray(bytes_of(height, width, smooth=False))


def as_rgb(image: Image.Image) -> Image.Image:
    """What the host's Load Image makes of a mode before our nodes see it."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")


SIZES = ["1024x1024", "1x9", "9x1", "4000x300", "300x4000", "1023x1025", "8x8", "2000x1500", "513x300"]
MODES = ["palette", "alpha", "gray", "16 bit"]


def floats(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float() / 255


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """diffsynth's encoders at the tiny sizes, the files they were loaded from, and ours from the same files."""
    folder = tmp_path_factory.mktemp("encoders")
    made: dict[str, Any] = {}
    for kind, config in TINY.items():
        path = save_encoder(folder / f"{kind}.safetensors", config)
        made[kind] = (_theirs(config, path), load_pooled(path), path)
    return made


def _theirs(config: PooledConfig, path: Path) -> Any:
    """diffsynth's class; its sizes are written into its constructor, so that gets a config of ours."""
    import transformers.models.dinov3_vit.modeling_dinov3_vit as dinov3
    import transformers.models.siglip.modeling_siglip as siglip
    from diffsynth.models.dinov3_image_encoder import DINOv3ImageEncoder
    from diffsynth.models.siglip2_image_encoder import Siglip2ImageEncoder
    from diffsynth.utils.state_dict_converters.dino_v3 import DINOv3StateDictConverter

    tensors = load_file(path)
    cls: Any
    if config.kind == SIGLIP2:
        module, name, cls = siglip, "SiglipVisionConfig", Siglip2ImageEncoder
    else:
        module, name, cls = dinov3, "DINOv3ViTConfig", DINOv3ImageEncoder
        tensors = DINOv3StateDictConverter(tensors)
    original = getattr(module, name)

    def small(**sizes: Any) -> Any:
        sizes |= {
            "hidden_size": config.width,
            "num_hidden_layers": config.blocks,
            "intermediate_size": config.mlp,
            "num_attention_heads": config.heads,
        }
        return original(**sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, small)
        theirs = cls()
    theirs.load_state_dict(tensors)
    return theirs.eval()


@pytest.mark.parametrize("name", REGISTERED)
def test_full_size_tensors_are_those_of_the_published_file(name: str):
    from diffsynth.configs.model_configs import MODEL_CONFIGS

    kind, expected = REGISTERED[name]
    assert expected in [entry["model_hash"] for entry in MODEL_CONFIGS if entry["model_name"] == name]
    entries: list[str] = []
    for key, shape in PooledEncoder(FULL[kind], device="meta").file_shapes().items():
        entries += [key, f"{key}:{'_'.join(map(str, shape))}"]
    assert hashlib.md5(",".join(sorted(entries)).encode()).hexdigest() == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [1024, 224])
def test_the_square_that_is_seen_is_theirs_to_the_bit(size: str, side: int):
    from diffsynth.core.data.operators import ImageCropAndResize

    image = picture(size)
    expected = np.array(ImageCropAndResize(height=side, width=side)(image))
    assert np.array_equal(cover(floats(image), side).movedim(0, -1).numpy(), expected)


@pytest.mark.parametrize("kind", [SIGLIP2, DINOV3])
@pytest.mark.parametrize("name", SIZES + MODES)
def test_preprocessing_is_theirs(reference: dict[str, Any], kind: str, name: str):
    from diffsynth.core.data.operators import ImageCropAndResize

    theirs, ours, _ = reference[kind]
    image = as_rgb(picture(name))
    seen = ImageCropAndResize(height=1024, width=1024)(image)
    expected = theirs.processor(images=[seen], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours.preprocess(floats(image)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [SIGLIP2, DINOV3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_embeddings_are_theirs(reference: dict[str, Any], kind: str, dtype: torch.dtype):
    from diffsynth.core.data.operators import ImageCropAndResize

    theirs, _, path = reference[kind]
    ours = load_pooled(path, dtype)
    images = [as_rgb(picture(name)) for name in ("300x200", "1023x1025", "77x130", "palette", "alpha")]
    found = ours.encode([floats(image) for image in images])
    theirs.to(dtype)
    square = ImageCropAndResize(height=1024, width=1024)
    expected = torch.cat([theirs(square(image), torch_dtype=dtype, device="cpu") for image in images])
    theirs.float()
    assert found.dtype == dtype
    assert found.shape == (5, TINY[kind].width)
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()  # it does look at the picture
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
