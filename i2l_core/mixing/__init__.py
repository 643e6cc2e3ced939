"""Several LoRAs into one, parts of a LoRA, and what a LoRA looks like: algebra on factors, no dense matrix."""
