"""Run the program of a Diffusion Template, if user and server allow it, and build its network from its files.

A running program can do everything that ComfyUI can do (docs/templates.md).
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ...checks import listed, shown
from ...errors import I2LError, first_line
from ...files.kinds import describe_bytes
from .outputs import Outputs, read_outputs
from .pipe import PipeLacks
from .read import PROGRAM, Template, weight_names, weight_path

PERMISSION = "I2L_ALLOW_TEMPLATE_CODE"

_PACKAGES = {  # module -> what pip calls it, where that differs
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


class PipelineNeeded(I2LError):
    """A program asked for a part of DiffSynth's pipeline that it was not given. `socket`: VAE or CLIP, if that is what
    would bring it."""

    def __init__(self, message: str, socket: str = "") -> None:
        super().__init__(message)
        self.socket = socket


@dataclass(frozen=True, eq=False)
class LoadedTemplate:
    """A template whose program has run. `model`: its network, initially on the CPU, in `dtype`."""

    template: Template
    model: Any  # an nn.Module; without weights it need not be one
    dtype: torch.dtype

    def predict(
        self, pictures: Sequence[Image.Image], pipe: Any = None
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Pictures (RGB) -> the tensors of the LoRA, on the CPU and with memory of their own, and the names of
        whatever else the program returned. Raises I2LError as `run` does, and when there is no LoRA."""
        return self.run({"image": list(pictures)}, pipe).only_lora(self.template.name)

    def input_names(self) -> tuple[str, ...]:
        """What process_inputs takes by name, in its order, but for the pipeline."""
        parameters = inspect.signature(self.model.process_inputs).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return tuple(one.name for one in parameters if one.kind in named and one.name != "pipe")

    def run(self, inputs: Mapping[str, Any], pipe: Any = None) -> Outputs:
        """`inputs`: of process_inputs, by name; pictures are PIL's. `pipe`: what the program gets as its pipeline.

        Raises I2LError, with the first line of what it raised, when the program fails; PipelineNeeded when it asked
        for a part that `pipe` does not have.
        """
        name = self.template.name
        # copies: a program may scale a picture in place, and the same one may come twice
        given = {key: _copied(value) for key, value in inputs.items()}
        with torch.no_grad(), _running(name, "in process_inputs"):
            states = self.model.process_inputs(pipe=pipe, **given)
        with torch.no_grad(), _running(name, "in forward"):
            outputs = self.model.forward(pipe=pipe, **states)
        return read_outputs(name, outputs)


def check_allowed(name: str, allow_code: bool) -> None:
    """Raise I2LError unless both the user (`allow_code`) and who started the server allowed to run programs.

    The server's side is an environment variable: whatever can be set over the network, as ComfyUI's settings can, a
    workflow or a web page could set as well.
    """
    allowed = os.environ.get(PERMISSION) == "1"
    if allowed and allow_code:
        return
    steps = [] if allowed else [f"start ComfyUI with the environment variable {PERMISSION}=1"]
    steps += [] if allow_code else ["switch on allow_code at the node that loads it"]
    raise I2LError(
        f"{name} is a Diffusion Template: it brings a program, {PROGRAM}, which could do anything on this computer "
        f"that ComfyUI can, so it was not run. If you trust its author, {' and '.join(steps)}"
    )


def load_template(template: Template, dtype: torch.dtype, allow_code: bool) -> LoadedTemplate:
    """Run the program and build its network: frozen, in `dtype`, on the CPU.

    With weights the network is built without memory of its own, and takes exactly what the files hold. Without any it
    starts from random values, always the same ones.

    Raises I2LError when it is not allowed to run (`check_allowed`), when the program fails or needs a package that is
    not there, and when files are missing, outside the folder, or not exactly what the network is made of. Nothing of
    it stays loaded then.
    """
    for name in template.weights or ():
        weight_path(template, name)  # errors that need no running program come first
    check_allowed(template.name, allow_code)
    loader = _Source(f"_i2l_template_{uuid.uuid4().hex}", template)
    module = importlib.util.module_from_spec(loader.spec())
    sys.modules[loader.name] = module  # as an import would: classes look up their own module
    try:
        with _running(template.name, "when it was started"):
            loader.exec_module(module)
        loaded = LoadedTemplate(template, _build(template, module, dtype), dtype)
    except BaseException:
        sys.modules.pop(loader.name, None)
        raise
    weakref.finalize(loaded, sys.modules.pop, loader.name, None).atexit = False
    return loaded


class _Source(importlib.machinery.SourceFileLoader):
    """Runs the text that was read: no bytecode that lies in the folder, and none is written there."""

    def __init__(self, name: str, template: Template) -> None:
        super().__init__(name, str(template.folder / PROGRAM))
        self._source = template.source

    def spec(self) -> importlib.machinery.ModuleSpec:
        spec = importlib.machinery.ModuleSpec(self.name, self, origin=self.path)
        spec.has_location = True  # so that the program has a __file__
        return spec

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self._source, self.path)


def _build(template: Template, module: types.ModuleType, dtype: torch.dtype) -> Any:
    network = getattr(module, "TEMPLATE_MODEL", None)
    if network is None:
        raise I2LError(f"{template.name}: its {PROGRAM} did not set TEMPLATE_MODEL when it ran")
    names = weight_names(getattr(module, "TEMPLATE_MODEL_PATH", None))
    if names is None:
        value = shown(module.TEMPLATE_MODEL_PATH)
        raise I2LError(
            f"{template.name}: TEMPLATE_MODEL_PATH must name a file or a list of files, got {value}"
        )
    if names:
        config = getattr(module, "TEMPLATE_MODEL_CONFIG", None)
        paths = [weight_path(template, name) for name in names]
        with _running(template.name, "when its network was built"), _parameters_on_meta():
            model = network(**({} if config is None else config))
        _load_weights(template.name, model, paths, dtype)
    else:
        with _running(template.name, "when its network was built"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed is for the GPU's too
            model = network()
    with _running(template.name, "when its network was built"):
        if hasattr(model, "to"):
            model = model.to(dtype=dtype)
        if hasattr(model, "eval"):
            model = model.eval()
        if isinstance(model, nn.Module):
            model.requires_grad_(False)
    for method in ("process_inputs", "forward"):
        _check_method(template.name, model, method)
    return model


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """In this thread parameters are made without memory: the files bring theirs. Buffers, which they need not bring,
    are real."""
    thread = threading.get_ident()

    def without_memory(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # torch's hint leaves out that a hook may return another parameter
    handle = register_module_parameter_registration_hook(without_memory)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        handle.remove()


def _load_weights(name: str, model: Any, paths: Sequence[Path], dtype: torch.dtype) -> None:
    """Load exactly the tensors of the files into the network, floating point tensors in `dtype`."""
    if not isinstance(model, nn.Module):
        raise I2LError(f"{name}: it has weights, but TEMPLATE_MODEL is not a network: {type(model).__name__}")
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {}  # name of a tensor -> the open file that holds it
        for path in paths:
            file = stack.enter_context(_opened(name, path))
            if twice := where.keys() & set(file.keys()):
                raise I2LError(
                    f"{name}: {path.name} repeats tensors of another of its weight files: {listed(sorted(twice))}"
                )
            where |= dict.fromkeys(file.keys(), file)
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key, file in where.items()}
        problems = [f"{key} is missing" for key in sorted(expected.keys() - shapes.keys())]
        problems += [f"{key} is not expected" for key in sorted(shapes.keys() - expected.keys())]
        problems += [
            f"{key} expected {expected[key]}, got {shapes[key]}"
            for key in sorted(expected.keys() & shapes.keys())
            if expected[key] != shapes[key]
        ]
        if problems:
            files = listed(path.name for path in paths)
            raise I2LError(f"{name}: {files} does not match the network of {PROGRAM}: {listed(problems)}")
        tensors = {key: file.get_tensor(key) for key, file in where.items()}
    tensors = {key: part.to(dtype) if part.is_floating_point() else part for key, part in tensors.items()}
    model.load_state_dict(tensors, strict=True, assign=True)


@contextlib.contextmanager
def _opened(name: str, path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise I2LError(
            f"{name}: expected weights in {path.name}, but {describe_bytes(path, error)}"
        ) from error


def _check_method(name: str, model: Any, method: str) -> None:
    function = getattr(model, method, None)
    if not callable(function):
        raise I2LError(f"{name}: its network has no {method}, which a Diffusion Template needs")
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise I2LError(
            f"{name}: {method} of its network does not accept **kwargs, which a Diffusion Template needs"
        )


@contextlib.contextmanager
def _running(name: str, when: str) -> Iterator[None]:
    """Turn whatever the program raises into one line; ComfyUI itself answers to too little memory."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except ModuleNotFoundError as error:
        if not error.name:
            raise I2LError(f"{name}: its {PROGRAM} failed {when}: {first_line(error)}") from error
        raise I2LError(f"{name}: its {PROGRAM} needs {_how_to_install(error.name.split('.')[0])}") from error
    except PipeLacks as error:
        raise PipelineNeeded(f"{name}: its {PROGRAM} failed {when}: {error}", error.socket) from error
    except ImportError as error:
        raise I2LError(f"{name}: its {PROGRAM} {_what_is_lacking(error, when)}") from error
    except (Exception, SystemExit) as error:
        raise I2LError(f"{name}: its {PROGRAM} failed {when}: {first_line(error)}") from error


def _how_to_install(package: str) -> str:
    """The package, and the one command that brings it into the Python that runs this."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return (
        f"the Python package {package}, which is not installed; if you trust it, run "
        f"{python} -m pip install {_PACKAGES.get(package, package)} and start ComfyUI again"
    )


def _what_is_lacking(error: ImportError, when: str) -> str:
    """For a name that an installed package does not have, which version that is and what to do."""
    found = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
    if not found:
        return f"failed {when}: {first_line(error)}"
    what, package = found[1], found[2].split(".")[0]
    try:
        version = f"{package} {importlib.metadata.version(_PACKAGES.get(package, package))}"
    except importlib.metadata.PackageNotFoundError:
        version = f"the {package}"
    return (
        f"needs {what} of the Python package {package}, which {version} that is installed does not have; get a newer "
        f"{PROGRAM} from where it was published, or install the version of {package} that it was written for, if "
        "ComfyUI runs with it"
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return value.copy()
    return [_copied(one) for one in value] if isinstance(value, list | tuple) else value
