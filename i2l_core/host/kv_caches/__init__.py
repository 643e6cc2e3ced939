"""Caches of keys and values in the host: applied to CONDITIONING, and made by its own Flux class."""
