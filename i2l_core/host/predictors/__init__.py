"""Predictors and their encoders under ComfyUI's memory management."""
