"""LoRA files that we write, opened by diffusers and by DiffSynth: both then give what our merged LoRA gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_oracle_diffsynth
import test_oracle_diffusers
import torch
from oracles import (
    LIMIT,
    Pair,
    architecture_and_weights,
    is_absent,
    linears,
    merged_output,
    ours,
    output,
    random_layers,
    randomise,
    take_weights,
)
from safetensors.torch import load_file, save_file

from i2l.i2l_core.lora import LoRA, LowRank, to_whole_weights
from i2l.i2l_core.lora_files.file import load, save
from i2l.i2l_core.lora_files.keys import keys_of
from i2l.i2l_core.mixing.whole_weights import in_whole_weights

pytestmark = test_oracle_diffsynth.pytestmark

DIFFUSERS = ["Z-Image", "FLUX.2 klein", "Qwen-Image"]
DIFFSYNTH = ["Z-Image", "FLUX.2", "HiDream-O1"]


def prepared(pair: Pair) -> tuple[Pair, LoRA]:
    """With the same random weights in both libraries, and a LoRA of ranks that differ, on all that the host has."""
    randomise(pair.theirs)
    take_weights(pair.patcher, pair.theirs, pair.renames)
    architecture, _ = architecture_and_weights(pair.patcher)
    sizes = {name: size for name, size in linears(pair.theirs).items() if not is_absent(architecture, name)}
    layers: dict[str, LowRank] = {}
    for rank in (1, 2, 3):
        part = dict(list(sizes.items())[rank - 1 :: 3])
        layers |= random_layers(part, rank=rank, seed=rank)
    return pair, ours(pair.patcher, layers)


def written(pair: Pair, lora: LoRA, key_format: Any, folder: Path) -> Path:
    _, weights = architecture_and_weights(pair.patcher)
    widths = {name.removesuffix(".weight"): shape[0] for name, shape in weights.items()}
    return save(to_whole_weights(lora, widths), folder / "style.safetensors", key_format=key_format)


def error(pair: Pair, lora: LoRA, theirs: torch.Tensor) -> float:
    """How far they are from our merged LoRA, as a share of what the LoRA changes."""
    plain, ours_ = output(pair.patcher, pair), merged_output(pair.patcher, lora, pair)
    return float((theirs - ours_).double().norm() / (plain - ours_).double().norm())


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_opens_our_file(host, name: str, tmp_path: Path):
    pair, lora = prepared(test_oracle_diffusers.PAIRS[name]())
    path = written(pair, lora, "diffusers", tmp_path)
    network: Any = pair.theirs
    with torch.no_grad():
        network.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="transformer")
        assert error(pair, lora, pair.call()) <= LIMIT


@pytest.mark.parametrize("name", DIFFSYNTH)
def test_diffsynth_opens_our_file(host, name: str, tmp_path: Path):
    from diffsynth.diffusion.base_pipeline import BasePipeline

    pair, lora = prepared(test_oracle_diffsynth.PAIRS[name]())
    path = written(pair, lora, "DiffSynth", tmp_path)
    pipe = BasePipeline(device="cpu", torch_dtype=torch.float32)
    with torch.no_grad():
        pipe.enable_lora_hot_loading(pair.theirs)
        pipe.load_lora(pair.theirs, state_dict=load_file(path), verbose=0)
        assert error(pair, lora, pair.call()) <= LIMIT


@pytest.mark.parametrize("key_format", ["ComfyUI", "diffusers", "DiffSynth"])
def test_we_open_them_again(host, key_format: str, tmp_path: Path):
    pair, lora = prepared(test_oracle_diffsynth.PAIRS["FLUX.2"]())
    back = load(written(pair, lora, key_format, tmp_path))
    plain, again = (
        merged_output(pair.patcher, lora, pair),
        merged_output(pair.patcher, in_whole_weights(back), pair),
    )
    assert float((plain - again).abs().max()) <= 1e-5 * float(plain.abs().max())


@pytest.mark.parametrize(
    "said",
    [
        {"r": 2, "lora_alpha": 5},
        {"r": 2, "lora_alpha": 5, "use_rslora": True},
        {
            "r": 2,
            "lora_alpha": 5,
            "alpha_pattern": {"layers.0.attention.to_q": 1, "layers.1.feed_forward.w1": 9},
        },
    ],
    ids=["alpha", "rank-stabilised", "pattern"],
)
def test_alpha_in_the_header_is_taken_as_diffusers_takes_it(host, said: dict[str, Any], tmp_path: Path):
    pair = test_oracle_diffusers.PAIRS["Z-Image"]()
    randomise(pair.theirs)
    take_weights(pair.patcher, pair.theirs, pair.renames)
    tensors = {}
    for name, layer in random_layers(linears(pair.theirs), rank=2).items():
        down, up, _ = keys_of("diffusers", name)
        tensors |= {down: layer.down, up: layer.up}
    config = {"target_modules": list(linears(pair.theirs)), **said}  # PEFT wants the modules named
    packed = {f"transformer.{key}": value for key, value in config.items()}
    header = {"lora_adapter_metadata": json.dumps(packed)}
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, header)
    lora = load(path)
    network: Any = pair.theirs
    with torch.no_grad():
        network.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="transformer")
        assert error(pair, lora, pair.call()) <= LIMIT
