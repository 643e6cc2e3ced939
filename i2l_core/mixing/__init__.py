"""Fuse LoRAs, interpolate between them, weight their blocks, and plot them. All algebra works on factors."""
