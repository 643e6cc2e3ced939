"""Infinity in the host: its transformer, text encoder and VAE, and a run."""
