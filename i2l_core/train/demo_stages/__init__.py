"""The demo world's own networks: `python -m i2l_core.train.demo_stages STAGE` from the repository's root."""
