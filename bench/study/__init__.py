"""The study: what a LoRA predicted in one forward carries, answered where every factor is known."""
