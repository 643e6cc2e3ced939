"""`python -m i2l_core predict REF... --predictor FILE --out FILE`: predict a LoRA file without ComfyUI.

A predictor of version 1 needs its published image encoders. They are searched in the folder of the predictor, or in
--encoders. If an output file exists, the next free name is used. The names of the written files go to stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import I2LError
from ..files.atomic import SUFFIX
from ..lora_files.file import save
from ..lora_files.keys import KEY_FORMATS
from ..mixing.whole_weights import in_whole_weights
from ..predictors import open_predictor
from ..predictors.plain_runtime import PlainRuntime
from ..references import Reference, with_positive_weight
from ..references.files import read_reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        outputs = [path for path in (options.out, options.neutral_out) if path]
        for path in outputs:
            _check_place(path)
        options.device = _usable_device(options.device)
        references = _references(options.references, options.weights)
        runtime = PlainRuntime(
            options.device,
            DTYPES[options.dtype] if options.dtype else None,
            options.encoders or [options.predictor.parent],
        )
        with torch.inference_mode():
            prediction = open_predictor(options.predictor, runtime).predict(references)
        for path, lora in zip(outputs, (prediction.lora, prediction.neutral), strict=False):
            sys.stdout.write(f"{save(in_whole_weights(lora), path, key_format=options.layout)}\n")
    except I2LError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m i2l_core predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "references", nargs="+", type=Path, metavar="REF", help="reference pictures of one style"
    )
    parser.add_argument("--predictor", required=True, type=Path, metavar="FILE", help="the predictor file")
    parser.add_argument(
        "--out", required=True, type=_lora_path, metavar="FILE", help="where to save the LoRA"
    )
    parser.add_argument(
        "--neutral-out",
        type=_lora_path,
        metavar="FILE",
        help="where to save the neutral LoRA too, for the negative side of CFG",
    )
    parser.add_argument(
        "--weights",
        type=_numbers,
        metavar="W,W,...",
        help="weight of each picture; default: 1. 2 equals giving the picture twice, 0 leaves it out",
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="image encoders of version 1: files, or folders that hold them",
    )
    parser.add_argument(
        "--layout",
        choices=KEY_FORMATS,
        default=KEY_FORMATS[0],
        help="key names of the LoRA file; default: ComfyUI's",
    )
    parser.add_argument(
        "--device", help="device of PyTorch, such as cpu or cuda; default: a GPU if there is one"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the computation; default: bf16 on a GPU, else fp32; for version 1 that of its file",
    )
    return parser


def _references(paths: list[Path], weights: list[float] | None) -> list[Reference]:
    if weights is not None and len(weights) != len(paths):
        raise I2LError(f"--weights: expected one for each of {len(paths)} pictures, got {len(weights)}")
    weights = weights or [1.0] * len(paths)
    return with_positive_weight(
        [read_reference(path, weight) for path, weight in zip(paths, weights, strict=True)]
    )


def _check_place(path: Path) -> None:
    """Raise I2LError if no file can be made at `path`, before minutes of work."""
    existing = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise I2LError(f"cannot save {path}: {existing} is not a folder that can be written; choose another")


def _lora_path(text: str) -> Path:
    path = Path(text)
    if os.path.isdir(path) or not path.name:
        raise argparse.ArgumentTypeError(f"expected the name of a file, got the folder {text!r}")
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _usable_device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as PyTorch's backends raise them
        reason = str(error).partition("\n")[0]
        raise I2LError(f"--device: PyTorch cannot use {name[:40]!r} here ({reason}); try cpu") from error
