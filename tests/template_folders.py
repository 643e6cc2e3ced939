"""Diffusion Templates written by the tests: small networks, in folders as the interface describes them."""

from __future__ import annotations

import types
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from i2l.i2l_core.predictors.template.run import PERMISSION

# For the layers it is given. What it predicts depends on every pixel of every picture, on their sizes and on
# how many there are; it has parameters, a buffer that is saved and one that is not.
STYLE = """
import math

import numpy as np
import torch
from torch import nn

TARGETS = LAYERS


class Style(nn.Module):
    def __init__(self, width=12, rank=2):
        super().__init__()
        self.rank = rank
        self.look = nn.Linear(9, width)
        self.a = nn.ModuleList(nn.Linear(width, rank * d_in, bias=False) for d_in, _ in TARGETS.values())
        self.b = nn.ModuleList(nn.Linear(width, rank * d_out, bias=False) for _, d_out in TARGETS.values())
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.register_buffer("offset", torch.linspace(-1, 1, width))
        self.register_buffer("mean", torch.full((3,), 0.5), persistent=False)

    @torch.no_grad()
    def process_inputs(self, image, **kwargs):
        features = []
        for picture in image:
            x = torch.from_numpy(np.array(picture)).to(self.mean) / 255 - self.mean
            size = x.new_tensor([picture.width / 100, picture.height / 100, math.log(picture.width)])
            features.append(torch.cat([x.mean((0, 1)), x[::2].std((0, 1)), size]))
        return {"features": torch.stack(features)}

    def forward(self, features, pipe=None, **kwargs):
        states = torch.tanh(self.look(features)) * self.scale + self.offset
        state = (torch.softmax(states.sum(1), 0)[:, None] * states).sum(0)
        lora = {}
        for (name, (d_in, d_out)), a, b in zip(TARGETS.items(), self.a, self.b):
            lora[f"{name}.lora_A.default.weight"] = a(state).view(self.rank, d_in)
            lora[f"{name}.lora_B.default.weight"] = b(state).view(d_out, self.rank)
        return {"lora": lora, MORE}


TEMPLATE_MODEL = Style
TEMPLATE_MODEL_PATH = PATH
TEMPLATE_MODEL_CONFIG = {"width": 16, "rank": 3}
"""

KV_CACHE = '"kv_cache": {"double_0": (features[None, None], features[None, None])}'


def write(folder: Path, program: str, **files: dict[str, torch.Tensor]) -> Path:
    """A folder of model.py and files of tensors; "__" in a name stands for "-"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(program, "utf-8")
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name.replace('__', '-')}.safetensors")
    return folder


def demo_layers() -> dict[str, tuple[int, int]]:
    """Layers of the tiny backbone of the demo, with what goes in and out."""
    from i2l.i2l_core.demo.backbone import BackboneConfig

    return {
        **{f"layers.{i}.attention.to_q": (256, 256) for i in (0, 3)},
        **{f"layers.{i}.attention.to_v": (256, 256) for i in (0, 3)},
        "layers.1.feed_forward.w2": (BackboneConfig().ffn_dim, 256),
        "noise_refiner.0.attention.to_out.0": (256, 256),
    }


def style(
    folder: Path,
    weights: bool = True,
    shards: int = 1,
    more: str = "",
    seed: int = 0,
    layers: dict[str, tuple[int, int]] | None = None,
) -> Path:
    """The template of STYLE, with random weights in files, or without files, for layers of the demo or others."""
    names = ["model"] if shards == 1 else [f"model__{i + 1:05}" for i in range(shards)]
    path = [f"{name.replace('__', '-')}.safetensors" for name in names]
    program = (
        STYLE.replace("LAYERS", repr(layers or demo_layers()))
        .replace("PATH = PATH", f"PATH = {path if shards > 1 else path[0] if weights else None!r}")
        .replace("MORE", more)
    )
    if not weights:
        return write(folder, program)
    tensors = weights_of(program, seed)
    keys = sorted(tensors)
    return write(
        folder, program, **{name: {k: tensors[k] for k in keys[i::shards]} for i, name in enumerate(names)}
    )


def weights_of(program: str, seed: int) -> dict[str, torch.Tensor]:
    """Random weights of the network that a program defines."""
    module: Any = types.ModuleType(f"weights_{uuid.uuid4().hex}")
    exec(compile(program, "model.py", "exec"), module.__dict__)  # noqa: S102  # ours, from above
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = module.TEMPLATE_MODEL(**module.TEMPLATE_MODEL_CONFIG)
        return {name: torch.randn_like(tensor) * 0.3 for name, tensor in network.state_dict().items()}


def hostile(folder: Path, marker: Path) -> Path:
    """A folder whose program writes a file as soon as it runs."""
    program = f"""
from pathlib import Path
Path({str(marker)!r}).write_text("executed")
TEMPLATE_MODEL = None
TEMPLATE_MODEL_PATH = None
"""
    return write(folder, program)


def allowed_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/i2l, as extra paths may set it, and the server's permission."""
    import folder_paths

    folder = tmp_path / "models" / "i2l"
    folder.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "models_dir", str(folder.parent))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "i2l", ([str(folder)], {".safetensors"}))
    monkeypatch.delitem(folder_paths.filename_list_cache, "i2l", raising=False)
    monkeypatch.setenv(PERMISSION, "1")
    return folder
