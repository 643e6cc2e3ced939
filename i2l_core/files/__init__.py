"""Strict reading of safetensors files, and atomic writing."""
