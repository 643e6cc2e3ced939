"""The transformer of Infinity in the host: its files, its types, and the same numbers as the plain module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import infinity_models as models
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.files import transformer_weights
from i2l.i2l_core.infinity.paths import Drawing, Sampling, draw
from i2l.i2l_core.infinity.scales import scales_of
from i2l.i2l_core.infinity.transformer import Infinity

TEXT = models.numbers("text", 1, 7, models.TEXT)


def logits(model: Infinity) -> list[Tensor]:
    """Of each scale of a short run, with the learned empty prompt as the other side."""
    drawing = Drawing(scales_of(1.5, "0.06M"), [TEXT])
    return [step.logits for step in draw(model, drawing, Sampling(seed=5, temperature=0.7))]


def plain(weights: dict[str, Tensor]) -> Infinity:
    model = Infinity(models.config())
    model.load_state_dict(transformer_weights(weights))
    return model


def loaded(path: Path, **options) -> Infinity:
    import comfy.model_management

    from i2l.i2l_core.host.infinity.model import load_model

    model = load_model(path, **options)
    comfy.model_management.load_models_gpu(model.get_models())
    assert model.name == path.name
    assert model.dtype == torch.float32
    return model.network


def test_files_of_each_form_draw_as_the_plain_module(host, tmp_path: Path):
    weights = models.released_weights()
    expected = logits(plain(weights))
    save_file(weights, tmp_path / "flat.safetensors")
    torch.save(weights, tmp_path / "flat.pth")
    slim = {name: tensor for name, tensor in weights.items() if "zero_k" not in name}
    save_file(slim, tmp_path / "slim.safetensors")
    names = sorted(weights)
    for i, part in enumerate((names[:40], names[40:]), 1):
        save_file({name: weights[name] for name in part}, tmp_path / f"x-0000{i}-of-00002.safetensors")
    for name in ("flat.safetensors", "flat.pth", "slim.safetensors", "x-00002-of-00002.safetensors"):
        found = logits(loaded(tmp_path / name))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), name


def test_eight_bits_are_for_the_matrices_of_the_blocks_alone(host, tmp_path: Path):
    weights = models.released_weights()
    save_file(weights, tmp_path / "flat.safetensors")
    model = loaded(tmp_path / "flat.safetensors", float8=True)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    eight = {name for name, kind in types.items() if kind == torch.float8_e4m3fn}
    assert len(eight) == models.DEPTH * 8  # qk, v, proj; q, kv, proj; fc1, fc2
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in eight)
    rounded = {
        name: tensor.to(torch.float8_e4m3fn).float()
        if "block_chunks" in name and tensor.ndim == 2
        else tensor
        for name, tensor in weights.items()
    }
    expected = logits(plain(rounded))
    assert all(torch.equal(*pair) for pair in zip(logits(model), expected, strict=True))
    assert not torch.equal(expected[0], logits(plain(weights))[0])


def test_a_file_in_eight_bits_keeps_small_weights_in_more(host, tmp_path: Path):
    """As the host stores it on a card that has no room for more."""
    from i2l.i2l_core.host.infinity import model

    weights = transformer_weights(models.released_weights())
    eight = torch.float8_e4m3fn
    types = {name: model._stored_as(name, tensor, eight, False) for name, tensor in weights.items()}
    assert types["blocks.0.ffn.fc1.weight"] == eight
    assert types["blocks.0.ffn.fc1.bias"] == types["text_proj_for_ca.0.weight"] == torch.bfloat16
    assert types["head.weight"] == types["blocks.0.ada_gss"] == torch.float32


def test_unloading_and_loading_changes_nothing(host, tmp_path: Path):
    import comfy.model_management

    from i2l.i2l_core.host.infinity.model import load_model

    save_file(models.released_weights(), tmp_path / "flat.safetensors")
    model = load_model(tmp_path / "flat.safetensors")
    comfy.model_management.load_models_gpu(model.get_models())
    before = logits(model.network)
    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu(model.get_models())
    assert all(torch.equal(*pair) for pair in zip(logits(model.network), before, strict=True))
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": None}, r"lacks head\.bias"),
        ({"extra": torch.zeros(1)}, "also has extra"),
        (
            {"block_chunks.0.module.1.sa.zero_k_bias": torch.ones(64)},
            r"expected zeros in block_chunks\.0\.module\.1\.sa\.zero_k_bias",
        ),
        ({"head.bias": torch.full((16,), float("nan"))}, "NaN or infinite"),
        ({"head.bias": torch.zeros(16, dtype=torch.int32)}, r"of the type torch\.int32"),
        ({"trainer.x": torch.zeros(1)}, "training checkpoint"),
        ({"pos_start": None, "cfg_uncond": None}, "choose its file"),
    ],
)
def test_other_files_are_refused(host, tmp_path: Path, change: dict[str, Tensor | None], message: str):
    from i2l.i2l_core.host.infinity.model import load_model

    changed = {**models.released_weights(), **change}
    path = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(I2LError, match=message) as caught:
        load_model(path)
    assert str(caught.value).startswith("model.safetensors: ")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.zeros(16, device="meta"), r"'head\.bias' has no numbers or a layout of its own"),
        (
            torch.zeros(16).to_sparse(),
            "expected an Infinity transformer, but it is damaged",
        ),  # torch's loader does
    ],
)
def test_pickled_tensors_without_numbers_of_their_own_are_refused(
    host, tmp_path: Path, odd: Tensor, message: str
):
    from i2l.i2l_core.host.infinity.model import load_model

    torch.save({**models.released_weights(), "head.bias": odd}, tmp_path / "model.pth")
    with pytest.raises(I2LError, match=rf"model\.pth: {message}"):
        load_model(tmp_path / "model.pth")


def test_missing_files_and_a_vae_are_named(host, tmp_path: Path):
    from i2l.i2l_core.host.infinity.model import load_model

    path = tmp_path / "x-00001-of-00003.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(
        I2LError,
        match=r"all 3 files .* x-00002-of-00003.safetensors, x-00003-of-00003.safetensors are missing",
    ):
        load_model(path)
    path = tmp_path / "vae.safetensors"
    save_file(models.coder_weights(models.CODER), path)
    with pytest.raises(I2LError, match="this is a VAE of Infinity"):
        load_model(path)


def test_weights_in_sixteen_bits_change_no_bit_of_what_is_computed_in_sixteen(
    host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So what is computed in float32 is kept in float32, and nothing else needs it."""
    import comfy.ops

    from i2l.i2l_core.host.infinity import model as module

    weights = models.released_weights()
    save_file(weights, tmp_path / "flat.safetensors")
    sixteen = torch.bfloat16
    monkeypatch.setattr(module, "_dtypes", lambda weights, device: (sixteen, sixteen))
    model = module.load_model(tmp_path / "flat.safetensors")
    assert model.dtype == sixteen
    kept = {name: tensor.dtype for name, tensor in model.network.state_dict().items()}
    assert kept["blocks.0.ffn.fc1.weight"] == kept["word_embed.bias"] == sixteen
    casting: Any = comfy.ops.manual_cast
    precise = Infinity(models.config(), casting)
    precise.load_state_dict(transformer_weights(weights))
    drawing = Drawing(scales_of(1.5, "0.06M"), [TEXT])
    found, expected = (
        [step.logits for step in draw(network, drawing, Sampling(seed=5, temperature=0.7), dtype=sixteen)]
        for network in (model.network, precise)
    )
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    exact = logits(plain(weights))
    assert not torch.equal(found[0], exact[0])
