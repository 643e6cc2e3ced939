"""Training: `python -m i2l_core.train STAGE` from the repository's root."""
