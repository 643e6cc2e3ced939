"""Files and folders of Diffusion Templates, and caches of keys and values: refused, or exactly what they hold."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2l_core.files.safetensors import read_header
from i2l_core.inspection import inspect_path
from i2l_core.kv_caches.cache import KVCache
from i2l_core.kv_caches.dit import DitTemplate
from i2l_core.kv_caches.kinds import StaticTemplate, recognise_template
from i2l_core.kv_caches.sides import is_cache_file, load_sides
from i2l_core.kv_caches.static import load_cache
from i2l_core.kv_caches.value import ValueTemplate
from i2l_core.predictors.template.read import read_template, weight_path

from .case import Case, Wrong
from .safetensors_file import Parts, mutated, parts_of, same_tensors
from .values import damaged_text, text

_CLASS = "class A:\n    pass\n\nTEMPLATE_MODEL = A\n"
# programs, and the names of the weights that they say
_PROGRAMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (f"{_CLASS}TEMPLATE_MODEL_PATH = 'model.safetensors'\n", ("model.safetensors",)),
    (
        f"{_CLASS}TEMPLATE_MODEL_PATH = ['model.safetensors', 'sub/b.safetensors']\n",
        ("model.safetensors", "sub/b.safetensors"),
    ),
    (
        "import cv2, numpy.linalg\nfrom torch import nn\nclass A(nn.Module):\n    pass\nTEMPLATE_MODEL: type = A\n",
        (),
    ),
    (f"{_CLASS}TEMPLATE_MODEL_PATH = None\nTEMPLATE_MODEL_CONFIG = {{'width': 2}}\n", ()),
)
_WEIGHTS = (
    "model.safetensors",
    "sub/b.safetensors",
    "out.safetensors",
    "self.safetensors",
    "../x.safetensors",
)
_WEIGHTS += (
    "model.bin",
    "n" * 300 + ".safetensors",
    "",
    ".",
    "/etc/passwd.safetensors",
    "a\0.safetensors",
    "sub",
)


def kv_file(rng: random.Random, folder: Path) -> Case:
    content = mutated(rng, rng.choice(_files()))
    path = folder / "t.safetensors"
    path.write_bytes(content)
    number = rng.choice((0.5, -3.0, 1e30))

    def check() -> None:
        inspect_path(path)
        header = read_header(path)
        entries = {entry.name: entry for entry in Parts.of(content).entries}
        if is_cache_file(header.metadata):
            sides = load_sides(path)
            found = {"positive": sides.positive, "negative": sides.negative}
            if json.loads(Parts.of(content).metadata["i2l_kv_cache"])["shared"]:
                if sides.negative is not sides.positive:
                    raise Wrong("it is shared, but the sides differ")
                del found["negative"]
            same_tensors(
                {f"{s}.{n}": t for s, c in found.items() if c for n, t in _tensors(c).items()}, content
            )
            return
        kind = recognise_template(path)
        if isinstance(kind, StaticTemplate):
            found = _tensors(load_cache(path))
            if len(found) != len(entries) or kind.blocks != len(found) / 2:
                raise Wrong(f"{len(found)} tensors, the file has {len(entries)}")
            if sorted(map(_sum, found.values())) != sorted(
                float(e.numbers().sum()) for e in entries.values()
            ):
                raise Wrong("its numbers differ from the file's")
        elif isinstance(kind, ValueTemplate):
            _check_value(kind, kind.make([number] * len(kind.values), 1.0, "it"), number, entries)
        elif isinstance(kind, DitTemplate):
            if kind.shapes() != {name: entry.shape for name, entry in entries.items()}:
                raise Wrong(f"{kind} has not the shapes of the file")

    return Case(content, check)


def template_folder(rng: random.Random, folder: Path) -> Case:
    program, names = rng.choice(_PROGRAMS)
    if rng.random() < 0.4 and names:
        other = rng.choice((*_WEIGHTS, text(rng)))
        program, names = program.replace(repr(names[0]), repr(other)), (other, *names[1:])
    expected = names
    if rng.random() < 0.5:
        program, expected = damaged_text(rng, program), None
    content = program.encode(errors="surrogatepass")
    home = folder / "Template"
    (home / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "sub/b.safetensors"):
        (home / name).write_bytes(b"x")
    (home / "out.safetensors").symlink_to(folder / "x.safetensors")
    (folder / "x.safetensors").write_bytes(b"x")
    (home / "self.safetensors").symlink_to(home / "self.safetensors")
    if rng.random() < 0.05:
        (home / "model.py").symlink_to(rng.choice((home / "model.py", folder / "x.safetensors")))
    elif rng.random() < 0.95:
        (home / "model.py").write_bytes(content)

    def check() -> None:
        template = read_template(home, [folder])
        inspect_path(home)
        if expected is not None and template.weights not in (expected, None):
            raise Wrong(f"its weights are {template.weights!r:.100}, the program says {expected!r:.100}")
        for name in template.weights or ():
            path = weight_path(template, name)
            if not path.resolve().is_relative_to(home.resolve()) or not path.is_file():
                raise Wrong(f"{path} is outside of the folder")

    return Case(content, check)


def _tensors(cache: KVCache) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": t for name, pair in cache.blocks.items() for part, t in zip("kv", pair, strict=True)
    }


def _check_value(kind: ValueTemplate, cache: KVCache, number: float, entries: dict[str, Any]) -> None:
    """In double precision, from the equations; files in 16 bits round on the way."""
    if kind.dtype != torch.float32:
        return
    half = kind.waves // 2
    angles = number * torch.exp(
        -torch.arange(half).double() / max(half, 1) * torch.log(torch.tensor(1e4).double())
    )
    waves = torch.cat([angles.float().double().cos(), angles.float().double().sin()])
    for name, found in _tensors(cache).items():
        block, part = name.rsplit(".", 1)
        made = []
        for value in kind.values:
            place = f"{value}.proj_{part}.{block}.".lstrip(".")
            w = {p: entries[place + p].numbers().view(entries[place + p].shape) for p in _PARTS}
            h = w["prefer_value_embedder.0.weight"] @ waves + w["prefer_value_embedder.0.bias"]
            h = w["prefer_value_embedder.2.weight"] @ (h * h.sigmoid()) + w["prefer_value_embedder.2.bias"]
            made.append(h + w["positional_embedding"])
        expected = torch.cat(made)
        error = (found.double().reshape(expected.shape) - expected).abs().max()
        if error > 1e-3 * expected.abs().max() + 1e-3:
            raise Wrong(f"{name} differs by {float(error):g} from the equations")


def _sum(tensor: Tensor) -> float:
    return float(tensor.double().flatten().sum())


_PARTS = {
    "prefer_value_embedder.0.weight": (8, 4),
    "prefer_value_embedder.0.bias": (8,),
    "prefer_value_embedder.2.weight": (8, 8),
    "prefer_value_embedder.2.bias": (8,),
    "positional_embedding": (3, 8),
}


@functools.cache
def _files() -> tuple[Parts, ...]:
    gen = torch.Generator().manual_seed(0)

    def values(*names: str) -> dict[str, Tensor]:
        return {
            f"{name}proj_{part}.{block}.{end}": torch.rand(shape, generator=gen)
            for name in names
            for part in "kv"
            for block in ("double_0", "single_1")
            for end, shape in _PARTS.items()
        }

    def pairs(*names: str) -> dict[str, Tensor]:
        return {f"{name}.{part}": torch.rand(1, 3, 2, 4, generator=gen) for name in names for part in "kv"}

    about = {"version": 1, "made_by": "a template", "shared": True}
    network = DitTemplate(16, 8, 16, 1, 1, 4, 6)
    return (
        parts_of(pairs("double_0", "single_3"), {}),
        parts_of(
            {f"{part}_cache.block_{i}": torch.rand(1, 2, 1, 4) for part in ("key", "value") for i in (0, 1)},
            {},
        ),
        parts_of(pairs("positive.double_0", "positive.single_0"), {"i2l_kv_cache": json.dumps(about)}),
        parts_of(
            pairs("positive.double_0", "negative.double_0"),
            {"i2l_kv_cache": json.dumps({**about, "shared": False})},
        ),
        parts_of(values(""), {"head_dim": "4"}),
        parts_of(values("r.", "g.", "b."), {"head_dim": "8"}),
        parts_of({name: torch.rand(shape) for name, shape in network.shapes().items()}, {}),
    )


MAKERS = {"kv_file": kv_file, "template_folder": template_folder}
