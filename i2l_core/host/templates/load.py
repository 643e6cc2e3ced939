"""Open a template: by its weights alone where they are recognised, else by its program, if that may run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...errors import I2LError
from ...files.kinds import describe_tensors
from ...files.safetensors import read_header
from ...kv_caches.sides import is_cache_file
from ...predictors.published import published, published_template, where_to_get
from ...predictors.template.read import Template as Program
from ...predictors.template.read import read_template, weight_path
from ...predictors.template.run import load_template as run_template
from ..predictors.runtime import comfy_runtime
from .base import Template
from .native import native_template
from .program import ProgramTemplate
from .saved import open_cache

_WEIGHTS = "model"  # how the published folders call their file of weights


def load_template(path: Path, allow_code: bool = False) -> Template:
    """A file of weights or a saved cache, or a folder with a program.

    A program runs only when the weights say too little, and then as `predictors.template.run.load_template` says.
    Raises I2LError naming the file for what is neither.
    """
    if path.is_dir():
        return _folder(path, allow_code)
    header = read_header(path)
    if is_cache_file(header.metadata):
        return open_cache(path)
    title = path.parent.name if path.stem == _WEIGHTS else path.stem
    native = native_template(path, title)
    if native is None:
        if published_template(title):
            raise I2LError(
                f"{title}: its weights alone do not say all that it does; {where_to_get(title)}, choose that folder "
                "and switch on allow_code"
            )
        said = describe_tensors(header.shapes, header.metadata)
        raise I2LError(f"{path.name}: expected a template or a saved cache, but {said}")
    return native


def _folder(folder: Path, allow_code: bool) -> Template:
    known = published(folder.name)
    if known and not known.one_picture:
        raise I2LError(f"{folder.name} is a predictor of LoRAs: use Load i2L Predictor")
    program = read_template(folder, comfy_runtime().template_roots())
    return _by_weights(program) or _by_program(program, allow_code)


def _by_weights(program: Program) -> Template | None:
    """Where its one file of weights says all that it does."""
    if program.weights is None or len(program.weights) != 1:
        return None
    return native_template(weight_path(program, program.weights[0]), program.name)


def _by_program(program: Program, allow_code: bool) -> ProgramTemplate:
    runtime = comfy_runtime()
    loaded = run_template(program, runtime.dtype(torch.bfloat16), allow_code)
    held = runtime.hold(loaded.model, whole=True) if isinstance(loaded.model, nn.Module) else None
    return ProgramTemplate(loaded, runtime, held)
