"""Benchmarks: each is `python -m bench.NAME --json`, from the repository's root, and prints one JSON object last."""
