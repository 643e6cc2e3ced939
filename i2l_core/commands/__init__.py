"""The commands of `python -m i2l_core`, one file each with `main(arguments) -> exit status`."""
