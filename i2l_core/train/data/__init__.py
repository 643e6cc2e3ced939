"""Data sets and batches for training."""
