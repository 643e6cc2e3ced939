"""LoRA files between us and ComfyUI's own loader, on the real tiny models: each reads what the other writes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, build, close, lora_for

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target
from i2l.i2l_core.lora_files.file import load, save
from i2l.i2l_core.lora_files.keys import KEY_FORMATS
from i2l.i2l_core.lora_files.names import find
from i2l.i2l_core.lora_files.tensors import from_state_dict, to_state_dict, unread_by_comfyui
from i2l.i2l_core.mixing.whole_weights import in_whole_weights

NETWORKS = (*CONFIGS, "z_image_omni")
SHARED = ("txt_in", "final_layer.adaLN_modulation.1")
LATER_BLOCK = re.compile(r"(blocks|layers|refiner)\.[1-9]")


@pytest.fixture(scope="module", params=NETWORKS)
def patcher(host, request):
    return build(request.param)


@functools.lru_cache(maxsize=1)
def core_names(patcher) -> dict[str, Any]:
    """Every name that core's loader knows -> the parameter, or (parameter, rows, function)."""
    import comfy.lora

    return comfy.lora.model_lora_keys_unet(patcher.model, {})


@functools.lru_cache(maxsize=1)
def weights_by_key(patcher) -> dict[str, torch.Tensor]:
    return patcher.model.state_dict()


def place(key: Any) -> tuple[str, Any, Any]:
    """(parameter, (dim, start, length) or None, function or None) of core's key, which may be the parameter alone."""
    parts: list[Any] = [key] if isinstance(key, str) else list(key)
    weight, offset, function, *_ = [*parts, None, None]
    return weight, offset, function


def core_reads(patcher, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight -> what core's own loader adds to it."""
    import comfy.lora

    patches = comfy.lora.load_lora(dict(tensors), core_names(patcher), log_missing=False)
    weights = weights_by_key(patcher)
    found: dict[str, torch.Tensor] = {}
    for key, adapter in patches.items():
        weight, offset, function = place(key)
        before = found.get(weight, torch.zeros_like(weights[weight]))
        patch = [(1.0, adapter, 1.0, offset, function)]
        found[weight] = comfy.lora.calculate_weight(patch, before.clone(), weight)
    return {key: value for key, value in found.items() if value.any()}


def changes(patcher, lora: LoRA) -> dict[str, torch.Tensor]:
    """Weight -> what the LoRA adds to it, by hand."""
    weights = weights_by_key(patcher)
    found: dict[str, torch.Tensor] = {}
    for target, layer in lora.layers.items():
        key = f"diffusion_model.{target.weight}.weight"
        whole = found.setdefault(key, torch.zeros_like(weights[key]))
        start, length = target.rows or (0, whole.shape[0])
        whole[start : start + length] += layer.delta()
    return found


def equal(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert torch.allclose(actual[key], expected[key], rtol=1e-5, atol=1e-6), key


def subsets(lora: LoRA) -> list[LoRA]:
    """All layers, each of the first blocks alone, all but some, q and k of fused weights, and random halves.

    Not alone those that two architectures call so, in sizes of both: other key formats are refused then.
    """
    targets = sorted(lora.layers)
    fused = sorted({target.weight for target in targets if target.rows is not None})
    of = {
        weight: [target for target in targets if target.weight == weight]
        for weight in fused
        if not LATER_BLOCK.search(weight)
    }
    chance = torch.Generator().manual_seed(0)
    halves = [[t for t in targets if torch.rand((), generator=chance) < 0.5] for _ in range(2)]
    chosen = [targets, *([t] for t in targets if t.weight not in SHARED and not LATER_BLOCK.search(t.weight))]
    chosen += [[t for t in targets if t != target] for target in targets[::20]]
    chosen += [part for rows in of.values() for part in (rows[:2], rows[1:], rows[::2])]
    return [lora.only(part) for part in chosen + halves if part]


@pytest.mark.parametrize("key_format", KEY_FORMATS)
def test_core_reads_back_whatever_we_write(patcher, key_format):
    """Every subset of layers. Layers whose names core does not know in other formats than its own are counted."""
    counted = 0
    for lora in subsets(lora_for(patcher)):
        whole = in_whole_weights(lora)
        tensors = to_state_dict(whole, key_format)
        unread = unread_by_comfyui(whole, key_format)
        counted += unread
        expected, actual = changes(patcher, lora), core_reads(patcher, tensors)
        equal(actual, {key: value for key, value in expected.items() if not unread or key in actual})
        layers = len(tensors) - sum(key.endswith(".alpha") for key in tensors)
        if unread == 0:
            assert actual.keys() == expected.keys()
        else:
            assert layers // 2 - unread == read_layers(patcher, tensors)
    assert (counted == 0) == (
        key_format == "ComfyUI" or not architecture(patcher).unread or not has_unread(patcher)
    )


def architecture(patcher):
    from i2l.i2l_core.host.patch import architecture_of

    found = architecture_of(patcher)
    assert found is not None
    return found


def has_unread(patcher) -> bool:
    from i2l.i2l_core.host.patch import weights_of

    layers = architecture(patcher).adapted_layers(weights_of(patcher))
    return any(layer.name.startswith(architecture(patcher).unread) for layer in layers)


def read_layers(patcher, tensors: Mapping[str, torch.Tensor]) -> int:
    import comfy.lora

    return len(comfy.lora.load_lora(dict(tensors), core_names(patcher), log_missing=False))


@pytest.mark.parametrize("key_format", KEY_FORMATS)
def test_we_read_back_whatever_we_write(patcher, key_format, tmp_path):
    for number, lora in enumerate(subsets(lora_for(patcher))[::5]):
        path = save(in_whole_weights(lora), tmp_path / f"{number}.safetensors", key_format=key_format)
        equal(
            changes(patcher, from_state_dict(load_tensors(path), architecture=architecture(patcher))),
            changes(patcher, lora),
        )


def load_tensors(path) -> dict[str, torch.Tensor]:
    import comfy.utils

    tensors: Any = comfy.utils.load_torch_file(str(path))
    return tensors


def test_a_lora_on_some_rows_of_a_fused_weight_is_saved_whole(patcher, tmp_path):
    """Also for a model of sizes that are not listed: its table says how many rows the weight has."""
    from i2l.i2l_core.host.lora_model import PredictedLoRA
    from i2l.i2l_core.host.patch import weights_of

    lora = lora_for(patcher)
    rows = [target for target in lora.layers if target.rows is not None]
    for target in rows[::2] or sorted(lora.layers)[:1]:
        one = lora.only([target])
        assert one.base_model == ""
        ups = [tensor for key, tensor in PredictedLoRA(one).items() if "lora_up" in key]
        assert [up.shape[0] for up in ups] == [weights_of(patcher)[f"{target.weight}.weight"][0]]
        equal(core_reads(patcher, PredictedLoRA(one)), changes(patcher, one))
        equal(changes(patcher, load(save(in_whole_weights(one), tmp_path / "x"))), changes(patcher, one))


def test_rows_of_a_weight_that_no_table_knows_are_not_guessed(host):
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    lora = LoRA({Target("odd.qkv", (4, 4)): LowRank(torch.randn(2, 8), torch.randn(4, 2))})
    with pytest.raises(
        I2LError, match=r"odd.qkv .*its number of rows is not known; apply the LoRA to its model"
    ):
        PredictedLoRA(lora)


def test_every_name_that_core_reads_is_read_by_us(patcher):
    """As the same rows of the same weight. FLUX.1's proj_mlp is refused: core puts it on rows of FLUX.2's gate."""
    table, weights = architecture(patcher), patcher.model.state_dict()
    seen = 0
    for name, where in core_names(patcher).items():
        weight, offset, _ = place(where)
        shape = weights[weight].shape if weight in weights else ()
        if (
            not weight.endswith(".weight")
            or len(shape) != 2
            or "embed_tokens" in weight
            or "pos_embed" in weight
        ):
            continue
        named = find(table, name)
        if "proj_mlp" in name:
            assert named is None
            continue
        assert named is not None, name
        length = shape[0] if offset is None else offset[2]
        target, _ = named.read(LowRank(torch.zeros(1, shape[1]), torch.zeros(length, 1)))
        assert f"diffusion_model.{target.weight}.weight" == weight, name
        assert target.rows == (None if offset is None else tuple(offset[1:])), name
        seen += 1
    assert seen >= 50


def test_core_trains_a_lora_that_only_merging_applies(host):
    """Train LoRA writes differences of norms and biases beside the pairs: no node leaves them out without a word."""
    from comfy_extras import nodes_train

    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.fuse import fuse_lora_models
    from i2l.i2l_core.host.guidance import asymmetric
    from i2l.i2l_core.host.save import save_lora_model

    made = nodes_train._setup_lora_adapters(build("lumina2"), {}, "LoRA", torch.float32, 4)[0]
    made = {key: torch.randn_like(value.detach().float()) * 0.01 for key, value in made.items()}
    assert any(key.endswith(".diff") for key in made)
    styled, applied = apply_lora_model(build("lumina2"), made, 1.0)
    assert styled.patches
    assert "all of them placed" in str(applied)
    for use in (
        lambda: apply_lora_model(build("lumina2"), made, 1.0, "live"),
        lambda: asymmetric(build("lumina2"), made),
        lambda: fuse_lora_models([made, made], [1, 1], "concat"),
        lambda: save_lora_model(made, "x"),
    ):
        with pytest.raises(I2LError, match=r"full weight differences.*Apply Predicted LoRA in mode merged"):
            use()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("kind", ["pair", "diff"])
def test_a_lora_model_in_8_bit_floats_is_applied_as_its_values(host, dtype, kind):
    from i2l.i2l_core.host.apply import apply_lora_model

    patcher, name = build("lumina2"), "diffusion_model.layers.0.attention.out"
    if kind == "diff":
        tensors = {f"{name}.diff": torch.randn(256, 256).to(dtype)}
        expected = tensors[f"{name}.diff"].float()
    else:
        down, up = torch.randn(4, 256).to(dtype), torch.randn(256, 4).to(dtype)
        tensors, expected = (
            {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
            up.float() @ down.float(),
        )
    before = patcher.model.state_dict()[f"{name}.weight"].clone()
    styled, _ = apply_lora_model(patcher, tensors, 1.0)
    styled.patch_model(device_to=torch.device("cpu"))
    after = styled.model.state_dict()[f"{name}.weight"].clone()
    styled.unpatch_model(device_to=torch.device("cpu"))
    close(after - before, expected, 1e-5)


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_what_is_not_of_the_diffusion_model_is_said_by_every_node(host, mode):
    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.cards import applied_card, guidance_card
    from i2l.i2l_core.host.guidance import asymmetric, describe

    patcher = build("lumina2")
    tensors = {**to_state_dict(in_whole_weights(lora_for(patcher)))}
    text = {f"text_encoders.q.lora_{part}.weight": torch.randn(4, 4) for part in ("down", "up")}
    extra = {**text, "bundle_emb.0.qwen": torch.randn(2, 64)}
    _, applied = apply_lora_model(patcher, {**tensors, **extra}, 1.0, mode)
    assert str(applied).endswith("; left out: layers of a text encoder (1), embeddings (1)")
    card = applied_card(applied)
    assert card is not None
    assert [(warning["id"], warning["n"]) for warning in card["warnings"]] == [("left_out", 2)]
    styled = asymmetric(patcher, {**tensors, **extra}, tensors)
    assert "left out: layers of a text encoder (1), embeddings (1)" in describe(styled)
    assert [warning["n"] for warning in guidance_card(styled, tensors)["warnings"]] == [2]
    norm = {"diffusion_model.layers.0.attention_norm1.diff": torch.randn(256)}
    _, applied = apply_lora_model(patcher, {**tensors, **extra, **norm}, 1.0)  # read by the host
    assert str(applied).endswith("all of them placed; left out: layers of a text encoder (1), embeddings (1)")


def test_a_lora_of_an_unknown_model_is_left_to_core_under_the_names_it_came_with(host):
    """Its file, read by us: merged as core merges it, not compared with names that we do not know."""
    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.lora_model import PredictedLoRA

    patcher = build("lumina2")
    patcher.model.diffusion_model.register_buffer("__ming_image__", torch.zeros(1))  # none of ours
    down, up = torch.randn(2, 256), torch.randn(256, 2)
    name = "layers.0.attention.out"
    lora = LoRA({Target(f"lora_unet_{name.replace('.', '_')}"): LowRank(down, up)})
    styled, applied = apply_lora_model(patcher, PredictedLoRA(lora), 1.0)
    assert str(applied) == "1 LoRA layers, all of them placed"
    assert set(styled.patches) == {f"diffusion_model.{name}.weight"}


def test_a_cure_is_advised_only_where_there_is_one(host):
    from i2l.i2l_core.host.apply import apply_lora_model
    from i2l.i2l_core.host.guidance import asymmetric

    patcher = build("lumina2")
    lora = to_state_dict(in_whole_weights(lora_for(build("lumina2", n_layers=8))))
    with pytest.raises(I2LError, match="by setting missing_layers to skip"):
        apply_lora_model(patcher, lora, 1.0)
    with pytest.raises(I2LError, match="does not fit this MODEL") as error:
        asymmetric(patcher, lora)
    assert "missing_layers" not in str(error.value)
    assert "Load LoRA" in str(error.value) or "made for this model" in str(error.value)
