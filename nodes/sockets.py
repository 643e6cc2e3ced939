"""Socket types that more than one node uses, each declared once."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "i2L"

Predictor = io.Custom("I2L_PREDICTOR")  # i2l_core.host.memory.HostPredictor
LoraModel = io.Custom("LORA_MODEL")  # ComfyUI's own: tensors by name; ours is host.lora_model.PredictedLoRA
