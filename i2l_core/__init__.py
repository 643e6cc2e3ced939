"""The core of ComfyUI-i2L: predict a LoRA from reference pictures. Plain PyTorch; only `host/` imports ComfyUI."""
