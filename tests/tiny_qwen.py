"""The text encoder of Qwen-Image in small, as a real CLIP with random weights: it sees pictures."""

from __future__ import annotations

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
VISION: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 48, "num_heads": 2}
VISION_LAYERS = 2
WIDTH = SIZES["hidden_size"]


def tiny_clip() -> Any:
    import comfy.sd
    import comfy.supported_models_base
    from comfy import sd1_clip
    from comfy.text_encoders import llama, qwen_image, qwen_vl

    class _Network(llama.Qwen25_7BVLI):
        """Its own sizes, the rest is the host's."""

        def __init__(self, config_dict: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
            torch.nn.Module.__init__(self)
            config = llama.Qwen25_7BVLI_Config(**SIZES)
            made: dict[str, Any] = {"device": device, "dtype": dtype, "ops": operations}
            self.num_layers = config.num_hidden_layers
            self.model = llama.Llama2_(config, **made)
            self.visual = qwen_vl.Qwen2VLVisionTransformer(
                **VISION, num_layers=VISION_LAYERS, output_hidden_size=WIDTH, **made
            )
            self.dtype = dtype

    network: Any = _Network

    class _Model(sd1_clip.SDClipModel):
        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Any = None, **_: Any
        ) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config={},
                special_tokens={"pad": 151643},
                layer_norm_hidden_state=False,
                model_class=network,
                enable_attention_masks=True,
                return_attention_masks=True,
                model_options=model_options or {},
            )

    model: Any = _Model

    class TextEncoder(qwen_image.QwenImageTEModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            sd1_clip.SD1ClipModel.__init__(
                self,
                device=device,
                dtype=dtype,
                name="qwen25_7b",
                clip_model=model,
                model_options=model_options or {},
            )

    target = comfy.supported_models_base.ClipTarget(qwen_image.QwenImageTokenizer, TextEncoder)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in clip.cond_stage_model.named_parameters():
            values = torch.randn(weight.shape, generator=gen)
            if weight.ndim > 1 and "embed_tokens" not in name:
                values /= weight[0].numel() ** 0.5
            elif "norm" in name or "ln_q" in name:
                values = 1 + 0.1 * values
            weight.copy_(values)
    return clip
