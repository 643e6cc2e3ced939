"""Predictor and image encoder files of every family: refused, or every tensor and size as the file has it."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from i2l_core.base_models import BaseModel
from i2l_core.base_models.lumina2 import LUMINA2
from i2l_core.base_models.qwen_image import QWEN_IMAGE
from i2l_core.encoders import (
    DINOV3,
    NAFLEX,
    SIGLIP2,
    SQUARE,
    EncoderConfig,
    PooledConfig,
    PooledEncoder,
    VisionEncoder,
    load_pooled,
    peek_pooled,
)
from i2l_core.files.fingerprint import fingerprint
from i2l_core.inspection import inspect_path
from i2l_core.predictors import open_predictor
from i2l_core.predictors.plain_runtime import PlainRuntime
from i2l_core.predictors.query.config import LayerSpec, QueryConfig
from i2l_core.predictors.query.network import QueryNetwork
from i2l_core.predictors.query.predictor import QueryPredictor
from i2l_core.predictors.v1 import kinds
from i2l_core.predictors.v1.kinds import QWEN, Z_IMAGE, Residual, V1Config
from i2l_core.predictors.v1.network import V1Network, peek_v1
from i2l_core.predictors.v1.predictor import V1Predictor
from i2l_core.train.config import EncoderTable
from i2l_core.train.encoder import load_encoder

from .case import Case, Wrong
from .safetensors_file import Parts, mutated, parts_of, same_tensors, written
from .values import damaged_text, damaged_tree

_MODELS = (
    BaseModel(
        "fuzz-z",
        "a small Z-Image",
        LUMINA2,
        {"dim": 12, "layers": 2},
        {"mlp": 20, "refiners": 1, "context": 1},
    ),
    BaseModel("fuzz-qwen", "a small Qwen-Image", QWEN_IMAGE, {"hidden": 8, "layers": 2}, {}),
)
_LARGE = (128, 256, 1024, 8192, 16384, 65536)  # up to the largest that a configuration may say


def query_predictor(rng: random.Random, folder: Path) -> Case:
    parts = rng.choice(_query_files())
    if rng.random() < 0.5:
        about = json.loads(parts.metadata["i2l"])
        about = _enlarged(rng, about) if rng.random() < 0.3 else damaged_tree(rng, about)
        parts = replace(parts, metadata={"i2l": json.dumps(about)})
    content = mutated(rng, parts)
    path = folder / "p.safetensors"
    path.write_bytes(content)

    def check() -> None:
        inspect_path(path)
        fingerprint(path)
        found = open_predictor(path, PlainRuntime(torch.device("cpu")))
        found.describe()
        if not isinstance(found, QueryPredictor):
            raise Wrong(f"it was read as {type(found).__name__}")
        header = Parts.of(content)
        said = json.loads(header.metadata["i2l"])
        loaded = found.loaded
        _check_said(loaded.config.to_json(), said["predictor"])
        _check_said(loaded.encoder.config.to_json(), said["encoder"])
        _check_said(loaded.meta, {"base_model": said["base_model"], "about": said.get("about", {})})
        networks = {"predictor.": loaded.predictor, "encoder.": loaded.encoder.model}
        same_tensors(
            {
                prefix + name: tensor
                for prefix, network in networks.items()
                for name, tensor in network.state_dict().items()
            },
            content,
        )

    return Case(content, check)


def v1_predictor(rng: random.Random, folder: Path) -> Case:
    content = mutated(rng, rng.choice(_v1_files()))
    path = folder / "p.safetensors"
    path.write_bytes(content)

    def check() -> None:
        with mock.patch.object(kinds, "MODELS", _MODELS):
            inspect_path(path)
            found = open_predictor(path, PlainRuntime(torch.device("cpu")))
            found.describe()
            if not isinstance(found, V1Predictor):
                raise Wrong(f"it was read as {type(found).__name__}")
            if (found.loaded.config, found.loaded.dtype) != peek_v1(path):
                raise Wrong("its header says something else")
            same_tensors(found.loaded.predictor.tensors(), content)

    return Case(content, check)


def image_encoder(rng: random.Random, folder: Path) -> Case:
    content = mutated(rng, rng.choice(_encoder_files()))
    path = folder / "e.safetensors"
    path.write_bytes(content)

    def check() -> None:
        inspect_path(path)
        seen = peek_pooled(path)
        found = load_pooled(path)
        if found.config != seen:
            raise Wrong(f"its header is of {seen}, the encoder is {found.config}")
        same_tensors(
            {name.removeprefix("model."): tensor for name, tensor in found.model.state_dict().items()},
            content,
        )

    return Case(content, check)


def _check_said(found: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Whatever a file says stands there; defaults may be added. 1 is not true, but it is 1.0."""
    for key, value in said.items():
        if _plain(found[key]) != _plain(value):
            raise Wrong(f"{key} is {found[key]!r:.80}, the file says {value!r:.80}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return ("bool", value) if isinstance(value, bool) else value


def _enlarged(rng: random.Random, tree: Any) -> Any:
    """A whole number at any depth replaced by a large one."""
    if isinstance(tree, int) and not isinstance(tree, bool):
        return rng.choice(_LARGE)
    if isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        return {**tree, key: _enlarged(rng, tree[key])}
    if isinstance(tree, list) and tree:
        place = rng.randrange(len(tree))
        return [*tree[:place], _enlarged(rng, tree[place]), *tree[place + 1 :]]
    return tree


@functools.cache
def _query_files() -> tuple[Parts, ...]:
    layers = (
        LayerSpec("layers.0.attention.qkv", (0, 12), 12, 12),
        LayerSpec("layers.0.attention.qkv", (24, 12), 12, 12),
        LayerSpec("layers.1.feed_forward.w1", None, 12, 20),
    )
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
    }
    files = []
    for encoder in (
        EncoderConfig(SQUARE, {**sizes, "image_size": 8}, image_size=8),
        EncoderConfig(NAFLEX, {**sizes, "num_patches": 4}, max_patches=4),
    ):
        config = QueryConfig(8, 1, 2, 3, 2, 8, layers, alpha=0.5)
        networks = {"predictor.": QueryNetwork(config), "encoder.": VisionEncoder(encoder).model}
        tensors = {
            prefix + name: tensor
            for prefix, network in networks.items()
            for name, tensor in network.state_dict().items()
        }
        about = {
            "format": "i2l-predictor",
            "version": 1,
            "family": "query",
            "base_model": {"id": "z-image"},
            "about": {"trained": "on nothing"},
            "predictor": config.to_json(),
            "encoder": encoder.to_json(),
        }
        files.append(parts_of(tensors, {"i2l": json.dumps(about)}))
    return tuple(files)


@functools.cache
def _v1_files() -> tuple[Parts, ...]:
    configs = (
        V1Config(Z_IMAGE, _MODELS[0], token_dim=10, code=3),
        V1Config(QWEN, _MODELS[1], token_dim=10, code=3, rank=2),
        V1Config(QWEN, _MODELS[1], token_dim=10, code=3, residual=Residual(5, 6, 2)),
    )
    files = []
    for config in configs:
        tensors = V1Network(config).tensors()
        files.append(parts_of({name: torch.rand(tensor.shape) for name, tensor in tensors.items()}, {}))
    return tuple(files)


@functools.cache
def _encoder_files() -> tuple[Parts, ...]:
    configs = (
        PooledConfig(SIGLIP2, width=96, blocks=1, mlp=4, patch=2, side=4),
        PooledConfig(DINOV3, width=128, blocks=2, mlp=4, patch=2, side=224, registers=2),
    )
    return tuple(
        parts_of({name: torch.rand(shape) for name, shape in encoder.file_shapes().items()}, {})
        for encoder in (PooledEncoder(config, device="meta") for config in configs)
    )


def encoder_folder(rng: random.Random, folder: Path) -> Case:
    """A folder as transformers saves it, for a training."""
    parts, config = rng.choice(_encoder_folders())
    seen: Any = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.5, 0.5], "resample": rng.choice((2, 3))}
    kind = rng.randrange(4)
    content = mutated(rng, parts) if kind == 0 else written(parts)
    texts = []
    for place, tree in enumerate((config, seen), 1):
        tree = damaged_tree(rng, tree) if kind in (place, 3) else tree
        tree = _enlarged(rng, tree) if kind == place and rng.random() < 0.2 else tree
        said = json.dumps(tree)
        texts.append(damaged_text(rng, said) if kind == place and rng.random() < 0.2 else said)
    (folder / "model.safetensors").write_bytes(content)
    for name, said in zip(("config.json", "preprocessor_config.json"), texts, strict=True):
        (folder / name).write_bytes(said.encode(errors="surrogatepass"))

    def check() -> None:
        found = load_encoder(EncoderTable(str(folder)))
        config, seen = (json.loads(said) for said in texts)
        vision, made = config.get("vision_config", config), found.config.to_json()
        _check_said(made["config"], {key: value for key, value in vision.items() if key in made["config"]})
        names = {"image_mean": "mean", "image_std": "std", "resample": "resample"}
        said = {names[key]: value for key, value in seen.items() if key in names and value is not None}
        if "resample" in said:
            said["resample"] = {2: "bilinear", 3: "bicubic"}[said["resample"]]
        _check_said(made, said)
        entries = {entry.name.removeprefix("vision_model."): entry for entry in Parts.of(content).entries}
        for name, tensor in found.model.state_dict().items():
            if not torch.equal(tensor.double().flatten(), entries[name].numbers()):
                raise Wrong(f"{name} is not what the file has")

    return Case("\n".join(texts).encode(errors="surrogatepass") + content, check)


@functools.cache
def _encoder_folders() -> tuple[tuple[Parts, dict[str, Any]], ...]:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"patch_size": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    found = []
    square, naflex = {**sizes, "image_size": 8}, {**sizes, "num_patches": 4}
    for name, given, encoder in (
        ("siglip", square, EncoderConfig(SQUARE, square, image_size=8)),
        ("siglip2", naflex, EncoderConfig(NAFLEX, naflex, max_patches=4)),
    ):
        model = VisionEncoder(encoder).model
        parts = parts_of({f"vision_model.{key}": tensor for key, tensor in model.state_dict().items()}, {})
        found.append((parts, {"model_type": encoder.kind, **given}))
        found.append((parts, {"model_type": name, "vision_config": given}))
    return tuple(found)


MAKERS = {
    "encoder_folder": encoder_folder,
    "query_predictor": query_predictor,
    "v1_predictor": v1_predictor,
    "image_encoder": image_encoder,
}
