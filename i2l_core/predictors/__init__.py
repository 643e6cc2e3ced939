"""Predictor families, one file each, and the strict checkpoint loader they share."""
