"""Infinity, a model that draws a picture scale by scale, with the style of references blended into an early scale."""
