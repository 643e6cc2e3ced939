"""The released predictors of version 2: Diffusion Templates, folders with a Python program and its weights."""
