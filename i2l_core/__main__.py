"""`python -m i2l_core COMMAND ...`, from the repository's root and without a server."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "predict": "predict a LoRA file from reference pictures",
    "inspect": "say what a file or folder is, from its header alone",
    "train": "train a predictor for a base model",
}


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        width = max(map(len, COMMANDS))
        print("usage: python -m i2l_core COMMAND ...\n")
        print("\n".join(f"  {command:{width}}  {about}" for command, about in COMMANDS.items()))
        return 0 if name in ("", "-h", "--help") else 2
    return importlib.import_module(f".commands.{name}", __package__).main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
