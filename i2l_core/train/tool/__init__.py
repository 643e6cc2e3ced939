"""Training as a tool: `python -m i2l_core train CONFIG`, any base model, one machine or many GPUs."""
