"""LoRA files: how every tool names their layers, reading, writing, metadata."""
