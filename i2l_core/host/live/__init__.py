"""Live LoRAs: beside the weights of the user's MODEL while a sampler runs (docs/live-lora.md)."""
