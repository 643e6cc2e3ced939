"""The demo world as ComfyUI's MODEL, CLIP and VAE."""
