"""The hypernetwork of the paper: queries for LoRA layers beside image tokens (arXiv 2606.13809, section 3)."""
