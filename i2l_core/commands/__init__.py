"""What `python -m i2l_core` can do, one command per file: `main(arguments) -> exit status`."""
