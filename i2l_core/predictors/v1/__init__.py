"""The released predictors of version 1: Z-Image, and Qwen-Image style, coarse, fine and bias."""
