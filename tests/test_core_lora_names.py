"""Names of LoRA layers in every tool's spelling, for every base model: where they land, and the way back."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from i2l.i2l_core.base_models import MODELS, find_model
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.lora import LoRA, LowRank, Target, to_whole_weights
from i2l.i2l_core.lora_files.file import load, save
from i2l.i2l_core.lora_files.keys import KEY_FORMATS, keys_of, split_key
from i2l.i2l_core.lora_files.names import find, recognise_lora
from i2l.i2l_core.lora_files.tensors import from_state_dict, to_state_dict

PAIRS = [
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora.down.weight", "lora.up.weight"),
]


@pytest.fixture(params=[model.id for model in MODELS])
def adapted(request: pytest.FixtureRequest):
    model = find_model(request.param)
    assert model is not None
    return model, model.architecture.adapted_layers(model.weights())


def layer(d_out: int, d_in: int, k: int = 1) -> LowRank:
    return LowRank(torch.randn(k, d_in), torch.randn(d_out, k))


def test_every_name_of_every_model_lands_where_the_table_says(adapted):
    model, found = adapted
    small = LowRank(torch.ones(1, 1), torch.arange(12.0)[:, None])
    for slot in found:
        spellings = [f"{prefix}{slot.name}" for prefix in ("", "transformer.", "diffusion_model.")]
        spellings += [f"base_model.model.{slot.name}", f"lora_unet_{slot.name.replace('.', '_')}"]
        for name in spellings:
            place = find(model.architecture, name)
            assert place is not None, name
            target, read = place.read(small)
            part = 0 if slot.target.rows is None else slot.target.rows[0] // slot.target.rows[1]
            rows = None if slot.target.rows is None else (part * 12, 12)
            assert target == Target(slot.target.weight, rows), name
            assert torch.equal(read.up, slot_order(slot, small.up)), name
        own = [
            f"{prefix}{slot.target.weight}" for prefix in ("", "diffusion_model.", "model.diffusion_model.")
        ]
        own.append(f"lycoris_{slot.target.weight.replace('.', '_')}")
        for name in own:
            place = find(model.architecture, name)
            assert place is not None, name
            assert place.read(small)[0] == Target(slot.target.weight), name
            assert torch.equal(place.read(small)[1].up, small.up)


def slot_order(slot, up: torch.Tensor) -> torch.Tensor:
    return torch.cat(up.chunk(2)[::-1]) if slot.swapped else up


def test_names_stay_apart_in_kohyas_spelling(adapted):
    _, found = adapted
    names = {slot.name for slot in found} | {slot.target.weight for slot in found}
    assert len({name.replace(".", "_") for name in names}) == len(names)


def test_layers_that_only_the_reference_has_are_known_by_name():
    architecture = find_model("hidream-o1").architecture  # type: ignore[union-attr]
    mergers = [f"model.visual.deepstack_merger_list.{i}.linear_fc{k}" for i in range(3) for k in (1, 2)]
    for name in [
        *mergers,
        "lm_head",
        f"transformer.{mergers[0]}",
        f"lora_unet_{mergers[0].replace('.', '_')}",
    ]:
        place = find(architecture, name)
        assert place is not None
        assert place.absent
    for name in ("lm_head.x", "lm_headx", mergers[0].replace(".0.", ".{}.")):
        assert find(architecture, name) is None
    merger = find(architecture, "model.visual.merger.linear_fc1")
    assert merger is not None
    assert not merger.absent


def test_base_models_are_told_by_names_and_sizes(adapted):
    model, found = adapted
    names = {slot.name: (slot.d_out, slot.d_in) for slot in found}
    assert (recognise_lora(names).architectures, recognise_lora(names).model) == (
        (model.architecture,),
        model,
    )
    host_names = {slot.target.weight: (slot.d_out, slot.d_in) for slot in found if slot.target.rows is None}
    found = recognise_lora(host_names)
    assert (found.architectures, found.model) == ((model.architecture,), model)


def test_what_fits_two_kinds_of_models_must_be_chosen():
    names = [f"transformer_blocks.{i}.attn.to_q" for i in range(3)]
    tensors = {}
    for name in names:
        down, up, _ = keys_of("diffusers", name)
        tensors |= {down: torch.randn(2, 3072), up: torch.randn(3072, 2)}
    with pytest.raises(I2LError, match=r"fit the FLUX.2 class and the Qwen-Image class alike; choose"):
        from_state_dict(tensors)
    assert Target(names[0]) in from_state_dict(tensors, base_model="qwen-image").layers
    rows = Target("double_blocks.0.img_attn.qkv", (0, 3072))
    assert rows in from_state_dict(tensors, base_model="flux2-klein-4b").layers
    down, up, _ = keys_of("diffusers", "transformer_blocks.40.attn.to_q")
    more = {**tensors, down: torch.randn(2, 3072), up: torch.randn(3072, 2)}
    assert from_state_dict(more).base_model == "qwen-image"


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_of_suffixes_is_read(pair):
    tensors = {f"transformer.layers.3.attention.to_k.{pair[0]}": torch.randn(2, 256)}
    tensors |= {f"transformer.layers.3.attention.to_k.{pair[1]}": torch.randn(256, 2)}
    lora = from_state_dict(tensors)
    assert list(lora.layers) == [Target("layers.3.attention.qkv", (256, 256))]
    assert lora.base_model == "i2l-tiny"
    assert split_key(f"w.{pair[0]}") == ("down", "w")


def random_lora(model, found, rank=lambda slot: 2) -> LoRA:
    """On every layer that the reference names, at the size of the model divided by 32."""
    layers = {}
    for slot in found:
        rows = slot.target.rows and tuple(n // 32 for n in slot.target.rows)
        layers[Target(slot.target.weight, rows)] = layer(
            slot.d_out // 32, max(1, slot.d_in // 32), rank(slot)
        )
    return LoRA(layers, model.id, "p", ("r",))


def whole(lora: LoRA, found) -> LoRA:
    widths = {slot.target.weight: 3 * slot.target.rows[1] // 32 for slot in found if slot.target.rows}
    return to_whole_weights(lora, widths)


def deltas(lora: LoRA) -> dict:
    return {str(target): part.to(dtype=torch.float32).delta() for target, part in lora.layers.items()}


@pytest.mark.parametrize("key_format", KEY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_files_of_every_key_format_say_the_same(adapted, key_format, dtype, tmp_path):
    model, found = adapted
    found = [
        slot for slot in found if not re.search(r"\.([2-9]|\d\d)\.", slot.name)
    ]  # two blocks of each kind
    lora = whole(random_lora(model, found), found).to(dtype=dtype)
    path = save(lora, tmp_path / "style.safetensors", key_format=key_format)
    back = load(path)
    assert (back.base_model, back.predictor, back.references) == (model.id, "p", ("r",))
    widths = {target.weight: part.d_out for target, part in lora.layers.items()}
    expected, got = deltas(lora), deltas(to_whole_weights(back, widths))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    again = save(to_whole_weights(back, widths), tmp_path / "again.safetensors", key_format=key_format)
    first, second = load_file(path), load_file(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_parts_get_back_the_rank_they_had(adapted):
    model, found = adapted
    found = list(found)[:8]
    lora = random_lora(model, found)
    written = from_state_dict(to_state_dict(whole(lora, found), "DiffSynth"), base_model=model.id)
    assert written.layers.keys() == lora.layers.keys()
    for target, part in lora.layers.items():
        assert torch.equal(written.layers[target].down, part.down)
        assert torch.equal(written.layers[target].up, part.up)


def test_parts_without_effect_are_left_out_and_one_rank_of_nothing_stays():
    whole = Target("layers.0.attention.qkv")
    up = torch.zeros(12, 2)
    up[4:8] = torch.randn(4, 2)
    tensors = to_state_dict(LoRA({whole: LowRank(torch.randn(2, 4), up)}, "i2l-tiny"), "diffusers")
    assert {key.split(".")[4] for key in tensors} == {"to_k"}
    nothing = to_state_dict(LoRA({whole: LowRank(torch.randn(2, 4), up * 0)}, "i2l-tiny"), "diffusers")
    assert {key.split(".")[4] for key in nothing} == {"to_q", "to_k", "to_v"}
    assert all(1 in tensor.shape for tensor in nothing.values())


def test_ranks_that_differ_are_said_to_diffusers_only(adapted):
    model, found = adapted
    found = [slot for slot in found if slot.target.rows is None][:3]
    lora = random_lora(model, found, rank=lambda slot: 1 + found.index(slot))
    for key_format in KEY_FORMATS:
        alphas = {k: v for k, v in to_state_dict(lora, key_format).items() if k.endswith(".alpha")}
        assert sorted(float(alpha) for alpha in alphas.values()) == (
            [1, 2, 3] if key_format == "diffusers" else []
        )
    same = from_state_dict(to_state_dict(lora, "diffusers"), base_model=model.id)
    for target, part in lora.layers.items():
        assert torch.equal(same.layers[target].up, part.up)


def test_another_key_format_needs_a_known_model(tmp_path):
    lora = LoRA({Target("w"): layer(4, 4)})
    with pytest.raises(
        I2LError, match=r"the names that diffusers has .* not known.*save it in ComfyUI's layout"
    ):
        save(lora, tmp_path / "x.safetensors", key_format="diffusers")
    assert not list(tmp_path.iterdir())


def test_one_target_under_two_names_is_refused():
    tensors = {}
    for name in ("norm_out.linear", "final_layer.adaLN_modulation.1"):
        down, up, _ = keys_of("diffusers", name)
        tensors |= {down: torch.randn(1, 3072), up: torch.randn(6144, 1)}
    with pytest.raises(I2LError, match=r"final_layer.adaLN_modulation.1 comes under two names"):
        from_state_dict(tensors)


def test_a_file_for_another_model_is_refused_when_it_says_so(tmp_path):
    lora = LoRA({Target("layers.0.attention.out"): layer(256, 256)}, "i2l-tiny")
    path = save(lora, tmp_path / "style.safetensors")
    assert load(path, "i2l-tiny").base_model == "i2l-tiny"
    with pytest.raises(I2LError, match=r"style.safetensors is for i2l-tiny, not for z-image; choose auto"):
        load(path, "z-image")


def test_a_hundred_thousand_unknown_keys_are_refused_at_once(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"some.block.{i}.weight": entry for i in range(100_000)}).encode()
    path = tmp_path / "big.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        I2LError, match=r"big.safetensors: 100000 of 100000 tensors are not LoRA layers"
    ) as caught:
        load(path)
    assert len(str(caught.value)) < 600
