"""ComfyUI's models for training: a frozen, differentiable base model, its VAE and text encoder."""
