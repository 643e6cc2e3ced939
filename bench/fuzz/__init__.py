"""Hostile files and texts, made by rules from a seed, and what the pack's readers say of them."""
