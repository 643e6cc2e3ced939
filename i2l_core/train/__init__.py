"""Train a predictor for any base model: `python -m i2l_core train CONFIG` (docs/training.md).

`demo_stages/` trains the networks of the demo world.
"""
