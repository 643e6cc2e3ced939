"""`python -m i2l_core predict REF... --predictor FILE --out FILE`: pictures in, a LoRA file out, without ComfyUI.

A predictor of version 1 needs the image encoders that were published for it; they are looked for beside it, or where
--encoders says. Where a file exists already, the next free name is taken; the names are written to stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checks import listed
from ..encoders import DINOV3, KINDS, MODEL_ID, SIGLIP2, load_pooled, peek_pooled
from ..errors import I2LError
from ..files.atomic import SUFFIX
from ..lora import LoRA
from ..lora_files.file import save
from ..lora_files.names import KEY_FORMATS
from ..mixing.whole_weights import in_whole_weights
from ..pictures import read_reference
from ..predictors.family import family_of
from ..predictors.query.attention_bias import attention_bias
from ..predictors.query.file import load_predictor
from ..predictors.v1.network import load_v1, peek_v1
from ..references import MIN_SIDE, Reference, gray, with_positive_weight

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        outputs = [path for path in (options.out, options.neutral_out) if path]
        for path in outputs:
            _check_place(path)
        options.device = _usable_device(options.device)
        references = _references(options.references, options.weights)
        for path, lora in zip(
            outputs, _PREDICT[family_of(options.predictor)](options, references), strict=False
        ):
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
    parser.add_argument("references", nargs="+", type=Path, metavar="REF", help="pictures of one style")
    parser.add_argument("--predictor", required=True, type=Path, metavar="FILE")
    parser.add_argument("--out", required=True, type=_lora_path, metavar="FILE", help="the LoRA of the style")
    parser.add_argument(
        "--neutral-out",
        type=_lora_path,
        metavar="FILE",
        help="the LoRA of gray pictures too, for the negative branch",
    )
    parser.add_argument(
        "--weights",
        type=_numbers,
        metavar="W,W,...",
        help="how much each picture counts: 2 is as if it were given twice, 0 as if it were not",
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="image encoders of version 1: files, or folders that have them",
    )
    parser.add_argument(
        "--layout",
        choices=KEY_FORMATS,
        default=KEY_FORMATS[0],
        help="whose names the file uses; default: ComfyUI's",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: bf16 on a GPU and fp32 without; for version 1 that of its file",
    )
    return parser


def _query(options: argparse.Namespace, references: list[Reference]) -> Iterator[LoRA]:
    """The LoRA of the references, then that of gray pictures."""
    loaded = load_predictor(options.predictor)
    device = options.device
    dtype = DTYPES[options.dtype or ("fp32" if device.type == "cpu" else "bf16")]
    encoder, predictor = loaded.encoder.to(device, dtype), loaded.predictor.to(device, dtype)
    blank = gray(encoder.config.full_size)
    for pictures in (references, [replace(blank, weight=one.weight) for one in references]):
        with torch.inference_mode():
            tokens = encoder.encode([picture.pixels.to(device) for picture in pictures]).to(dtype)
            bias = attention_bias(pictures, [encoder.grid(*picture.size) for picture in pictures])
            prediction = predictor(tokens, None if bias is None else bias.to(device))
        yield prediction.lora(0, loaded.base_model, loaded.name, tuple(one.hash for one in pictures))


def _v1(options: argparse.Namespace, references: list[Reference]) -> Iterator[LoRA]:
    """The same. Encoders and predictor are read one after the other, so that only one of them is in memory."""
    path = options.predictor
    config, dtype = peek_v1(path)
    if config.residual:
        raise I2LError(
            f"{path.name}: {config.title} also reads what Qwen-Image's text encoder says of the pictures, and that "
            "is ComfyUI's: predict with it there"
        )
    dtype = DTYPES[options.dtype] if options.dtype else dtype
    files = _encoder_files(options.encoders or [path.parent])
    blank = gray((MIN_SIDE, MIN_SIDE))  # gray pictures of any number and size give the same LoRA
    pictures = [*references, blank] if options.neutral_out else references
    embeddings = torch.cat([_embeddings(file, pictures, options.device, dtype) for file in files], dim=1)
    if embeddings.shape[1] != config.token_dim:
        raise I2LError(
            f"{path.name}: it reads embeddings of width {config.token_dim}, these encoders give "
            f"{embeddings.shape[1]}: {listed(map(str, files))}"
        )
    loaded = load_v1(path)
    for start, end in ((0, len(references)), (len(references), len(pictures))):
        used = pictures[start:end]
        with torch.inference_mode():
            lora = loaded.predictor(embeddings[start:end], [one.weight for one in used])
        yield replace(lora, predictor=loaded.name, references=tuple(one.hash for one in used))


def _template(options: argparse.Namespace, references: list[Reference]) -> Iterator[LoRA]:
    raise I2LError(
        f"{options.predictor} is a folder: expected a predictor file. Diffusion Templates are programs; they run in "
        "ComfyUI only, when that is allowed"
    )


_PREDICT = {"query": _query, "v1": _v1, "template": _template}


def _embeddings(path: Path, pictures: list[Reference], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(N, width of this encoder)"""
    encoder = load_pooled(path, dtype).to(device)
    with torch.inference_mode():
        inputs = [encoder.preprocess(picture.pixels)[None].to(device) for picture in pictures]
        return torch.cat([encoder(x) for x in inputs])


def _encoder_files(places: list[Path]) -> list[Path]:
    """The file of each kind, in the order of the embedding."""
    found: dict[str, Path] = {}
    for place in places:
        files = (
            sorted([*place.glob(f"*{SUFFIX}"), *place.glob(f"*/*{SUFFIX}")]) if place.is_dir() else [place]
        )
        for path in files:
            config = peek_pooled(path)
            if config:
                found.setdefault(config.kind, path)
    missing = [KINDS[kind].file for kind in (SIGLIP2, DINOV3) if kind not in found]
    if missing:
        raise I2LError(
            f"expected the image encoders of version 1 in {listed(map(str, places))}; get {' and '.join(missing)} of "
            f"{MODEL_ID} and say with --encoders where they are"
        )
    return [found[kind] for kind in (SIGLIP2, DINOV3)]


def _references(paths: list[Path], weights: list[float] | None) -> list[Reference]:
    if weights is not None and len(weights) != len(paths):
        raise I2LError(f"--weights: expected one for each of {len(paths)} pictures, got {len(weights)}")
    weights = weights or [1.0] * len(paths)
    return with_positive_weight(
        [read_reference(path, weight) for path, weight in zip(paths, weights, strict=True)]
    )


def _check_place(path: Path) -> None:
    """Before minutes of work: that a file can be made there."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise I2LError(f"cannot save {path}: {existing} is not a folder that can be written; choose another")


def _lora_path(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.name:
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
