"""What is read with ComfyUI's help: files of Infinity, names in its folders. Its folders are the case's own."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import pickle
import random
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

from i2l_core.infinity.coder import Coder, CoderConfig
from tools.host import import_host

from .case import Case, Wrong
from .names import furnished, name_of_user
from .safetensors_file import Parts, mutated, parts_of, written
from .values import damaged_bytes, value

TRANSFORMER, CODER, TEXT = "transformer", "coder", "text"


def infinity_file(rng: random.Random, folder: Path) -> Case:
    """A released file of the transformer, of its VAE or of its text encoder, as safetensors or as a pickle."""
    what = rng.choice((TRANSFORMER, TRANSFORMER, CODER, TEXT))
    suffix = rng.choice((".safetensors", ".safetensors", ".pth"))
    paths = [folder / f"m{suffix}"]
    marker = folder / "ran"
    if suffix == ".pth":
        contents = [_pickled(rng, _tensors()[what], marker)]
    elif what == TRANSFORMER and rng.random() < 0.3:
        paths = [folder / f"m-0000{i}-of-00002.safetensors" for i in (1, 2)]
        contents = [mutated(rng, parts) if rng.random() < 0.5 else written(parts) for parts in _halves(rng)]
    else:
        contents = [mutated(rng, parts_of(_tensors()[what], {}))]
    for path, content in zip(paths, contents, strict=True):
        if path is paths[0] or rng.random() < 0.9:
            path.write_bytes(content)

    def check() -> None:
        host()
        try:
            found = _LOADERS[what](rng.choice(paths))
        finally:
            if marker.exists():
                raise Wrong("a program in the file was run")
        _check_released(found, {name: t for path in paths for name, t in _read(path).items()}, what)

    return Case(contents[0], check)


def model_name(rng: random.Random, folder: Path) -> Case:
    """Names of workflows, in the folders of models."""
    name, root = name_of_user(rng), furnished(folder)
    (root / "Template").mkdir()
    (root / "Template" / "model.py").write_bytes(b"")
    (root / "style" / "ink.safetensors").write_bytes(b"x")
    (root / "m-00001-of-00002.safetensors").write_bytes(b"x")
    if rng.random() < 0.3:
        name = rng.choice(
            ("Template/", "style\\ink.safetensors", "m-00001-of-00002.safetensors", "template/")
        )
    said = rng.randrange(4)

    def check() -> None:
        with _folders(root):
            from i2l_core.host import folders
            from i2l_core.host.infinity import folders as infinity

            found = (
                folders.predictor_path,
                folders.lora_path,
                lambda name: infinity.file_path(infinity.MODELS, name),
                lambda name: infinity.files_fingerprint(infinity.VAES, name),
            )[said](name)
            if isinstance(found, Path):
                inside = Path(os.path.normpath(found)).is_relative_to(root) and found.exists()
                if not inside or found.relative_to(root).as_posix() != name.replace("\\", "/").rstrip("/"):
                    raise Wrong(f"{name!r:.80} is {found}")

    return Case(name.encode(errors="surrogatepass"), check)


def library_name(rng: random.Random, folder: Path) -> Case:
    """Names of folders of styles, and what lies in these."""
    name, root = rng.choice((name_of_user(rng), "style", "style", ".")), furnished(folder)
    for place in ("style/ink", "style/Ink", f"style/{name_of_user(rng)}", "style/a\n"):
        with contextlib.suppress(OSError, ValueError):
            (root / place).mkdir()
            Image.new("RGB", (9, 9), "red").save(root / place / "a.png")
    (folder / "outside" / "p.png").write_bytes((root / "style" / "ink" / "a.png").read_bytes())
    for link in ("style/out", "style/ink/self.png", "style/ink/p.png"):
        target = {"style/out": folder / "outside", "style/ink/self.png": root / "style/ink/self.png"}
        (root / link).symlink_to(target.get(link, folder / "outside" / "p.png"))

    def check() -> None:
        with _folders(root):
            from i2l_core.host.library import (
                fingerprint_library,
                library_folders,
                library_path,
                read_library,
            )

            library_folders()
            path = library_path(name)
            fingerprint_library(name)
            found = read_library(name, 3)
            if not path.is_relative_to(root.resolve()):
                raise Wrong(f"{name!r:.80} is {path}")
            for style, pictures in found.styles.items():
                for picture in pictures._paths:  # pyright: ignore[reportPrivateUsage]
                    if not picture.resolve().is_relative_to(root.resolve()):
                        raise Wrong(f"{style!r:.80} has {picture}")
                len([*pictures])

    return Case(name.encode(errors="surrogatepass"), check)


@contextlib.contextmanager
def _folders(root: Path) -> Iterator[None]:
    host()
    import folder_paths

    names = {name: ([str(root)], {".safetensors"}) for name in ("i2l", "loras", "diffusion_models", "vae")}
    with (
        mock.patch.object(folder_paths, "folder_names_and_paths", names),
        mock.patch.object(folder_paths, "filename_list_cache", {}),
        mock.patch.object(folder_paths, "models_dir", str(root)),
        mock.patch.object(folder_paths, "get_input_directory", return_value=str(root)),
    ):
        yield


@functools.cache
def host() -> None:
    """Import ComfyUI, once in a process."""
    logging.getLogger().setLevel(logging.ERROR)
    import_host(Path(tempfile.gettempdir()) / "i2l-fuzz-host")


def _load_transformer(path: Path) -> dict[str, Tensor]:
    from i2l_core.host.infinity.model import load_model

    return _apart(load_model(path).network.state_dict())


def _load_coder(path: Path) -> dict[str, Tensor]:
    from i2l_core.host.infinity.vae import load_vae

    return load_vae(path).coder.state_dict()


def _load_text(path: Path) -> dict[str, Tensor]:
    from i2l_core.host.infinity.text import load_text

    return load_text(path).cond_stage_model.state_dict()


_LOADERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    TRANSFORMER: _load_transformer,
    CODER: _load_coder,
    TEXT: _load_text,
}


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v as released files have them."""
    found = {}
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".sa.")
        if last == "qk.weight":
            found[f"{owner}.sa.mat_qkv.weight"] = torch.cat([tensor, state[f"{owner}.sa.v.weight"]])
        elif last == "qk.bias":
            found[f"{owner}.sa.q_bias"], found[f"{owner}.sa.zero_k_bias"] = tensor.chunk(2)
            found[f"{owner}.sa.v_bias"] = state[f"{owner}.sa.v.bias"]
        elif name.endswith("ca.mat_kv.bias"):
            owner = name.removesuffix("mat_kv.bias")
            found[f"{owner}zero_k_bias"], found[f"{owner}v_bias"] = tensor.chunk(2)
        elif last not in ("v.weight", "v.bias"):
            found[name] = tensor
    return found


def _check_released(found: dict[str, Tensor], said: dict[str, Tensor], what: str) -> None:
    """The host may keep 16 bit numbers in another 16 bit type."""
    if what == CODER:
        said = {_WRAPPER.sub(r"\1.", name.removeprefix("vae.")): tensor for name, tensor in said.items()}
    elif what == TRANSFORMER:
        places = sorted({match.group() for name in said if (match := _CHUNK.match(name))}, key=_numbers)
        said = {
            _CHUNK.sub(lambda match: f"blocks.{places.index(match.group())}.", name): tensor
            for name, tensor in said.items()
        }
    for name, tensor in found.items():
        given = [said[one] for one in (name, name.partition("transformer.")[2]) if one in said]
        if what == TEXT and not given:
            given = [said[one] for one in _TABLES if one in said and "shared" in name]
        if not given and name.endswith("zero_k_bias"):
            given = [torch.zeros_like(tensor)]
        if not given and what == TEXT and "logit_scale" in name:
            continue  # the host's own, unused
        if not given or not torch.allclose(
            tensor.double(), given[0].double().view(tensor.shape), rtol=1 / 128, atol=1e-6
        ):
            raise Wrong(f"{name} is not what the file has")


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _read(path: Path) -> dict[str, Tensor]:
    """Every tensor of an accepted file, in the form that its documentation says."""
    if path.suffix != ".pth":
        parts = Parts.of(path.read_bytes())
        return {entry.name: entry.numbers().view(entry.shape) for entry in parts.entries}
    found = torch.load(path, weights_only=True)
    if "state_dict" in found:
        found = found["state_dict"]
    elif len(found) == 1 and isinstance(alone := next(iter(found.values())), dict):
        found = alone
    return found["vae"] if isinstance(found.get("vae"), dict) else found


def _pickled(rng: random.Random, tensors: dict[str, Tensor], marker: Path) -> bytes:
    given: dict[Any, Any] = dict(tensors)
    name = rng.choice(list(given))
    shape = given[name].shape
    odd = (
        lambda: torch.full(shape, math.nan),
        lambda: torch.zeros(1).expand(1 << 40),
        lambda: torch.zeros(1).expand(shape),
        lambda: torch.zeros(shape, device="meta"),
        lambda: torch.zeros(shape).to_sparse(),
        lambda: torch.zeros(
            shape, dtype=rng.choice((torch.complex64, torch.int8, torch.bool, torch.float64))
        ),
        lambda: torch.zeros(shape, dtype=rng.choice((torch.float16, torch.bfloat16, torch.float8_e4m3fn))),
        lambda: torch.nn.Parameter(torch.ones(shape)),
        lambda: torch.quantize_per_tensor(torch.ones(shape), 0.1, 0, torch.quint8),
        lambda: torch.ones((*shape, 2))[..., 0],
        lambda: value(rng),
        lambda: {"a": torch.ones(1)},
        lambda: _Program(marker),
    )
    for _ in range(rng.randrange(3)):
        key = rng.choice((name, name, "trainer", 7, None, ("a",), "state_dict", "vae", "a\nb"))
        given[key] = rng.choice(odd)()
    tree: Any = rng.choice(
        (given, given, {"vae": given}, {"state_dict": given}, {"x": given}, [given], {"vae": [given]})
    )
    if rng.random() < 0.05:
        return pickle.dumps(rng.choice((_Program(marker), {"a": _Program(marker)}, 7, tree)))
    file = io.BytesIO()
    torch.save(tree, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    content = file.getvalue()
    match rng.randrange(6):
        case 0:
            return damaged_bytes(rng, content)
        case 1 if zipfile.is_zipfile(file):
            return _repacked(rng, file)
    return content


def _repacked(rng: random.Random, file: io.BytesIO) -> bytes:
    """Its members compressed, one of them at times far longer than it says, missing or twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        place = rng.choice(old.namelist())
        change = rng.randrange(4)
        for name in old.namelist():
            data = old.read(name)
            if name == place and change == 0:
                continue
            if name == place and change == 1:
                data += bytes(1 << 26)
            new.writestr(name, data)
            if name == place and change == 2:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    new.writestr(name, data[::-1])
    return out.getvalue()


@dataclass(frozen=True)
class _Program:
    """What a pickle would run, if that were allowed."""

    marker: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _halves(rng: random.Random) -> tuple[Parts, Parts]:
    tensors = _tensors()[TRANSFORMER]
    names = sorted(tensors)
    cut = rng.randrange(1, len(names))
    second = names[cut - (rng.random() < 0.1) :]  # a tensor may be in both
    return tuple(parts_of({name: tensors[name] for name in part}, {}) for part in (names[:cut], second))  # type: ignore


@functools.cache
def _tensors() -> dict[str, dict[str, Tensor]]:
    """A tiny file of each kind, under the released names."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {TRANSFORMER: _transformer_shapes(), TEXT: _text_shapes()}
    config = CoderConfig(bits=4, base=32, encoder=(32, 32), decoder=(32, 32), res_blocks=1)
    shapes[CODER] = {
        _inner(name): tuple(t.shape) for name, t in Coder(config, device="meta").state_dict().items()
    }
    gen = torch.Generator().manual_seed(0)
    return {
        what: {
            name: torch.zeros(shape) if name.endswith("zero_k_bias") else torch.rand(shape, generator=gen)
            for name, shape in found.items()
        }
        for what, found in shapes.items()
    }


def _inner(name: str) -> str:
    """As released VAEs have it, with wrappers around layers."""
    layer, _, end = name.rpartition(".")
    return f"{layer}.{'norm' if 'norm' in layer else 'conv'}.{end}"


def _transformer_shapes(width: int = 8, text: int = 8, bits: int = 4) -> dict[str, tuple[int, ...]]:
    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    shapes: dict[str, tuple[int, ...]] = {
        "cfg_uncond": (3, text),
        "pos_start": (1, 1, width),
        "lvl_embed.weight": (15, width),
        "text_norm.weight": (text,),
        "text_proj_for_sos.ca.mat_q": (1, 1, width),
        "text_proj_for_sos.ca.mat_kv.weight": (2 * width, text),
        "text_proj_for_sos.ca.v_bias": (width,),
        "text_proj_for_sos.ca.zero_k_bias": (width,),
        **linear("word_embed", bits, width),
        **linear("text_proj_for_sos.ca.proj", width, width),
        **linear("text_proj_for_ca.0", text, width),
        **linear("text_proj_for_ca.2", width, width),
        **linear("shared_ada_lin.1", width, 6 * width),
        **linear("head_nm.ada_lin.1", width, 2 * width),
        **linear("head", width, 2 * bits),
    }
    for block in ("block_chunks.0.module.0.", "block_chunks.1.module.0."):
        shapes |= {f"{block}{part}.zero_k_bias": (width,) for part in ("sa", "ca")}
        shapes |= {f"{block}{part}": (width,) for part in ("sa.q_bias", "sa.v_bias", "ca.v_bias")}
        shapes |= {f"{block}ca_norm.{part}": (width,) for part in ("weight", "bias")}
        shapes |= {
            f"{block}ada_gss": (1, 1, 6, width),
            f"{block}sa.mat_qkv.weight": (3 * width, width),
            f"{block}sa.scale_mul_1H11": (1, 2, 1, 1),
            f"{block}ca.mat_kv.weight": (2 * width, width),
            **linear(f"{block}sa.proj", width, width),
            **linear(f"{block}ca.mat_q", width, width),
            **linear(f"{block}ca.proj", width, width),
            **linear(f"{block}ffn.fc1", width, 16),
            **linear(f"{block}ffn.fc2", 16, width),
        }
    return shapes


def _text_shapes(width: int = 2) -> dict[str, tuple[int, ...]]:
    block = "encoder.block.0."
    return {
        "shared.weight": (32128, width),
        "encoder.final_layer_norm.weight": (width,),
        f"{block}layer.0.layer_norm.weight": (width,),
        f"{block}layer.1.layer_norm.weight": (width,),
        f"{block}layer.0.SelfAttention.relative_attention_bias.weight": (32, 1),
        **{f"{block}layer.0.SelfAttention.{one}.weight": (2, width) for one in "qkv"},
        f"{block}layer.0.SelfAttention.o.weight": (width, 2),
        **{f"{block}layer.1.DenseReluDense.{one}.weight": (3, width) for one in ("wi_0", "wi_1")},
        f"{block}layer.1.DenseReluDense.wo.weight": (width, 3),
    }


_CHUNK = re.compile(r"(?:block_chunks\.\d+\.module|blocks)\.\d+\.")
_WRAPPER = re.compile(
    r"((?:conv_in|conv_out|conv1|conv2|nin_shortcut|sample\.conv|norm1|norm2|norm_out))\.(?:conv|norm)\."
)
_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

MAKERS = {"infinity_file": infinity_file, "model_name": model_name, "library_name": library_name}
