"""What the CLIP of Qwen-Image sees, against diffsynth's own unit (2.1.12) around transformers' Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_qwen import SIZES, VISION, VISION_LAYERS, WIDTH, tiny_clip

from i2l.i2l_core.predictors.v1.kinds import COARSE, FINE, Residual
from i2l.i2l_core.references import Reference

IMAGE_TOKEN = 151655

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def clip(host: Any) -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def pipe(clip: Any) -> Any:
    """What the unit asks of a pipeline: diffsynth's text encoder with the weights of `clip`, and the processor."""
    import comfy.text_encoders.qwen_image
    import transformers
    from diffsynth.models.qwen_image_text_encoder import QwenImageTextEncoder

    original = transformers.Qwen2_5_VLConfig

    def small(**config: Any) -> Any:
        config["text_config"] |= {**SIZES, "layer_types": ["full_attention"] * SIZES["num_hidden_layers"]}
        config["vision_config"] |= {**VISION, "depth": VISION_LAYERS, "out_hidden_size": WIDTH}
        return original(**{**config, **SIZES})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers, "Qwen2_5_VLConfig", small)
        encoder = QwenImageTextEncoder()
    tensors = clip.cond_stage_model.qwen25_7b.transformer.state_dict()
    names = {"model.": "language_model.", "visual.": "visual."}
    renamed = {
        new + name.removeprefix(old): tensor
        for old, new in names.items()
        for name, tensor in tensors.items()
        if name.startswith(old)
    }
    assert len(renamed) == len(tensors)
    encoder.model.load_state_dict(renamed)

    folder = Path(comfy.text_encoders.qwen_image.__file__).parent / "qwen25_tokenizer"
    processor = transformers.Qwen2_5_VLProcessor(
        # the sizes of Qwen/Qwen-Image-Edit's processor
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056),
        tokenizer=transformers.Qwen2Tokenizer.from_pretrained(folder),
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    encoder.eval()

    def with_image_positions(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        # transformers 4 finds the picture among the tokens by itself; transformers 5 wants to be told, which
        # diffsynth does not, and would place the picture as if it were text
        return encoder(input_ids=input_ids, mm_token_type_ids=(input_ids == IMAGE_TOKEN).int(), **kwargs)

    return SimpleNamespace(
        processor=processor,
        text_encoder=with_image_positions,
        device="cpu",
        torch_dtype=torch.float32,
        load_models_to_device=lambda names: None,
    )


@pytest.mark.parametrize("length", [COARSE, FINE])
@pytest.mark.parametrize("size", [(300, 200), (33, 410)])
@torch.no_grad()
def test_hidden_states_are_theirs(clip: Any, pipe: Any, length: int, size: tuple[int, int]):
    from diffsynth.pipelines.qwen_image import QwenImageUnit_Image2LoRAEncode

    from i2l.i2l_core.host.predictors.qwen_states import QwenStates

    levels = (
        torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5), size, mode="bicubic").clamp(0, 1) * 255
    ).byte()
    image = Image.fromarray(np.ascontiguousarray(levels[0].movedim(0, -1).numpy()))
    unit = QwenImageUnit_Image2LoRAEncode()
    expected = unit.encode_images_using_qwenvl(pipe, [image], highres=length == FINE)[0].view(length, WIDTH)

    with QwenStates(clip, Residual(length, WIDTH, code=2), torch.float32).ready() as look:
        found = look(Reference(torch.from_numpy(np.array(image)).float() / 255))
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.1e}"
