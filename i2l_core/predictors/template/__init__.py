"""The released predictors of version 2: Diffusion Templates, folders that bring a program."""
