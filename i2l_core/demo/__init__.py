"""The demo world: generated pictures whose style factors are all known, and small models trained on them."""
