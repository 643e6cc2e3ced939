"""The core of ComfyUI-i2L: reference pictures in, a LoRA out. Plain PyTorch; only `host/` imports ComfyUI."""
