"""The keys and values that a template of a whole network makes, against DiffSynth's own network.

Theirs runs at noise level 0 on pictures at (10 (i + 1), h, w, 0) and text at (0, 0, 0, l). What its attentions get,
after normalisation and rotation, is the cache; its weights are written under the names of the published templates.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import LIMIT, randomise
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.kv_caches.cache import KVCache
from i2l.i2l_core.kv_caches.dit import DitTemplate
from i2l.i2l_core.kv_caches.kinds import recognise_template

pytestmark = pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated")

SIZES = DitTemplate(hidden=256, head_dim=128, mlp=768, double=2, single=2, patch=128, text=48)
WORDS = 16
PICTURES = ((4, 6), (5, 3))  # H, W in tokens

# theirs -> the published name; names with three parts become one tensor
_RENAMES = (
    (r"x_embedder", "img_embedder"),
    (r"context_embedder", "txt_embedder"),
    (r"(time_guidance_embed\.timestep_embedder)\.linear_1", r"\1.0"),
    (r"(time_guidance_embed\.timestep_embedder)\.linear_2", r"\1.2"),
    (r"(single_transformer_blocks\.\d+)\.attn\.", r"\1."),
    (r"(transformer_blocks\.\d+)\.attn\.to_add_out", r"\1.txt_to_out"),
    (r"(transformer_blocks\.\d+)\.attn\.to_out\.0", r"\1.img_to_out"),
    (r"(transformer_blocks\.\d+)\.attn\.norm_added_", r"\1.txt_norm_"),
    (r"(transformer_blocks\.\d+)\.attn\.norm_", r"\1.img_norm_"),
    (r"(transformer_blocks\.\d+)\.ff_context\.", r"\1.txt_ff."),
    (r"(transformer_blocks\.\d+)\.ff\.", r"\1.img_ff."),
)


def published(theirs: torch.nn.Module) -> dict[str, Tensor]:
    left = dict(theirs.state_dict())
    found = {}
    for i in range(SIZES.double):
        place = f"transformer_blocks.{i}."
        for stream, parts in (
            ("img", ("to_q", "to_k", "to_v")),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            tensors = [left.pop(f"{place}attn.{part}.weight") for part in parts]
            found[f"{place}{stream}_to_qkv.weight"] = torch.cat(tensors)
    for name, tensor in left.items():
        for pattern, other in _RENAMES:
            name = re.sub(rf"^{pattern}", other, name)
        assert name not in found
        found[name] = tensor
    return found


@pytest.fixture(scope="module")
def module(host) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffsynth.models.flux2_dit")


@pytest.fixture(scope="module")
def theirs(module) -> Any:
    network = module.Flux2DiT(
        num_layers=SIZES.double,
        num_single_layers=SIZES.single,
        num_attention_heads=2,
        joint_attention_dim=SIZES.text,
        guidance_embeds=False,
    )
    randomise(network)
    return network.eval()


@pytest.fixture(scope="module")
def path(theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("template") / "model.safetensors"
    save_file(published(theirs), found)
    return found


def given(count: int) -> tuple[list[Tensor], Tensor]:
    gen = torch.Generator().manual_seed(5)
    pictures = [torch.randn(1, SIZES.patch, *size, generator=gen) for size in PICTURES[:count]]
    return pictures, torch.randn(1, WORDS, SIZES.text, generator=gen)


def positions(size: Sequence[int], index: float) -> Tensor:
    return torch.tensor([[index, h, w, 0.0] for h in range(size[0]) for w in range(size[1])])


def seen(module, theirs, pictures: list[Tensor], text: Tensor, indices=(10, 20), timestep: float = 0.0):
    """Block -> keys and values, (1, S, heads, head_dim), as its attention function is given them."""
    names = [f"double_{i}" for i in range(SIZES.double)] + [f"single_{i}" for i in range(SIZES.single)]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    attention = module.attention_forward

    def keep(query: Tensor, key: Tensor, value: Tensor, **patterns: Any) -> Tensor:
        assert patterns["k_pattern"] == patterns["v_pattern"] == "b s n d"
        found[names[len(found)]] = key, value
        return attention(query, key, value, **patterns)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "attention_forward", keep)
        theirs(
            hidden_states=torch.cat([picture.flatten(2).transpose(1, 2) for picture in pictures], 1),
            encoder_hidden_states=text,
            timestep=torch.tensor([timestep]),
            img_ids=torch.cat([positions(p.shape[2:], i) for p, i in zip(pictures, indices, strict=False)]),
            txt_ids=torch.tensor([[0.0, 0.0, 0.0, place] for place in range(text.shape[1])]),
        )
    assert len(found) == len(names)
    return found


def ours(path: Path, pictures: list[Tensor], text: Tensor) -> KVCache:
    from i2l.i2l_core.host.kv_caches.dit import load_network, run_network

    held = load_network(path, SIZES, SIZES.patch, torch.float32)
    return run_network(held, SIZES, pictures, text, torch.float32, "ours")


def error(one, other, which: int) -> float:
    """The largest of all blocks, as a share of their keys (0) or values (1)."""
    return max(
        float((one[name][which] - other[name][which]).double().norm() / other[name][which].double().norm())
        for name in other
    )


def test_the_published_names_are_all_that_is_expected(path: Path):
    assert recognise_template(path) == SIZES


@pytest.mark.parametrize("count", [1, 2])
def test_keys_and_values_are_theirs(module, theirs, path: Path, count: int):
    pictures, text = given(count)
    found, expected = ours(path, pictures, text), seen(module, theirs, pictures, text)
    assert list(found.blocks) == list(expected)
    tokens = WORDS + sum(height * width for height, width in PICTURES[:count])
    assert {tuple(keys.shape) for keys, _ in found.blocks.values()} == {(1, tokens, 2, 128)}
    for which in (0, 1):
        assert error(found.blocks, expected, which) <= LIMIT


def test_other_pictures_places_and_times_would_be_seen(module, theirs, path: Path):
    pictures, text = given(2)
    found = ours(path, pictures, text).blocks
    turned = [pictures[0].mT.contiguous(), pictures[1]]
    others = {
        "from 0": seen(module, theirs, pictures, text, indices=(0, 10)),
        "the same place": seen(module, theirs, pictures, text, indices=(10, 10)),
        "by 1": seen(module, theirs, pictures, text, indices=(1, 2)),
        "turned": seen(module, theirs, turned, text),
        "at noise": seen(module, theirs, pictures, text, timestep=0.01),
        "other words": seen(module, theirs, pictures, text.flip(1)),
    }
    for name, other in others.items():
        assert error(found, other, 0) > 300 * LIMIT, name
        assert error(found, other, 1) > 300 * LIMIT, name
