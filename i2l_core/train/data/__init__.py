"""Data sets, and the batches that are drawn from them."""
