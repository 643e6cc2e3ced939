"""The text encoder of Infinity as a CLIP: equal to transformers', from files of each released form."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from i2l.i2l_core.errors import I2LError

SIZES = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 4, "num_layers": 3}
PROMPT = "a castle on a hill, oil painting; 3 bright windows & a moon"


@pytest.fixture(scope="module")
def oracle(host):
    """transformers' encoder with random weights."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(1)
    sizes: dict[str, Any] = {**SIZES}
    config = T5Config(**sizes, vocab_size=32128, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    model: Any = T5EncoderModel(config).eval()
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    torch.nn.init.normal_(table.weight)
    return model


@pytest.fixture(scope="module")
def weights(oracle) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone()
        for name, tensor in oracle.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }


def saved(folder: Path, weights: dict[str, Tensor], name: str = "flan.safetensors") -> Path:
    path = folder / name
    save_file(weights, path)
    return path


def encoded(clip, text: str) -> Tensor:
    """What the stock CLIP Text Encode gives."""
    [[states, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    assert extra["pooled_output"] is None
    return states


@torch.inference_mode()
def test_equals_transformers_with_padding_and_mask(oracle, weights, tmp_path: Path):
    from i2l.i2l_core.host.infinity.text import build_clip, text_weights

    clip = build_clip(*text_weights(weights), dtype=torch.float32)
    for text in ("", PROMPT):
        ids = [id for id, _ in clip.tokenize(text)["flan_t5_xl"][0]]
        assert ids[-1] == 1
        padded = torch.tensor([ids + [0] * (64 - len(ids))])
        mask = (torch.arange(64) < len(ids)).long()[None]
        expected = oracle(input_ids=padded, attention_mask=mask).last_hidden_state[:, : len(ids)]
        got = encoded(clip, text)
        assert got.shape == expected.shape == (1, len(ids), SIZES["d_model"])
        assert (got - expected).abs().max() <= 1e-6 * (expected.max() - expected.min())


@torch.inference_mode()
def test_files_of_each_form_give_the_same(weights, tmp_path: Path):
    from i2l.i2l_core.host.infinity.text import load_text

    other = torch.zeros(32128, SIZES["d_model"])
    table = weights["shared.weight"]
    rest = {name: tensor for name, tensor in weights.items() if name != "shared.weight"}
    forms = {
        "encoder.safetensors": weights,
        "named.safetensors": {**rest, "encoder.embed_tokens.weight": table},
        "decoder_table.safetensors": {**rest, "decoder.embed_tokens.weight": table},
        "model-00001-of-00002.safetensors": {
            **weights,
            "decoder.block.0.layer.0.layer_norm.weight": torch.full((3,), float("nan")),
            "lm_head.weight": other,
        },
        "with_wo_in_fp32.safetensors": {
            name: tensor if ".wo." in name else tensor.half() for name, tensor in weights.items()
        },
    }
    found = {name: encoded(load_text(saved(tmp_path, form, name)), PROMPT) for name, form in forms.items()}
    torch.save({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "model.pth")
    found["model.pth"] = encoded(load_text(tmp_path / "model.pth"), PROMPT)
    first = found.pop("encoder.safetensors")
    assert first.isfinite().all()
    for name, states in found.items():
        assert (states - first).abs().max() <= 5e-3 * first.abs().max(), name  # kept in 16 bits
    assert torch.equal(found["named.safetensors"], first)


@torch.inference_mode()
def test_words_have_weights(weights):
    from i2l.i2l_core.host.infinity.text import build_clip, text_weights

    clip = build_clip(*text_weights(weights), dtype=torch.float32)
    plain, once, twice = (encoded(clip, text) for text in ("a moon", "(a moon:1.0)", "(a moon:2.0)"))
    assert torch.equal(plain, once)
    empty = encoded(clip, "")
    assert not torch.equal(plain, twice)
    assert torch.equal(plain[:, -1], twice[:, -1])  # the end has no weight
    assert empty.shape[1] == 1


def test_a_long_prompt_is_cut_and_said(weights, caplog: pytest.LogCaptureFixture):
    from i2l.i2l_core.host.infinity.text import LONGEST, build_clip, text_weights

    clip = build_clip(*text_weights(weights))
    with caplog.at_level(logging.WARNING):
        clip.tokenize("moon " * 500)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        tokens = clip.tokenize("moon " * 600)["flan_t5_xl"]
    assert [len(section) for section in tokens] == [LONGEST]
    assert tokens[0][-1][0] == 1
    assert "more than 512 tokens" in caplog.text


BLOCK = "encoder.block.1.layer."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared.weight": None}, "it has no shared.weight"),
        (
            {BLOCK + "1.DenseReluDense.wo.weight": None},
            "lacks encoder.block.1.layer.1.DenseReluDense.wo.weight",
        ),
        ({"encoder.final_layer_norm.weight": None}, "choose the first one"),
        ({BLOCK + "0.SelfAttention.q.weight": torch.zeros(32, 23)}, r"of shape \(32, 24\), got \(32, 23\)"),
        ({BLOCK + "0.SelfAttention.q.bias": torch.zeros(32)}, "it also has encoder.block.1.layer.0"),
        (
            {BLOCK + "0.SelfAttention.relative_attention_bias.weight": torch.zeros(32, 4)},
            "AuraFlow's or UMT5; Infinity reads flan-t5-xl",
        ),
        ({"shared.weight": torch.zeros(100, 24)}, "of 32128 tokens, got 100"),
        ({"encoder.block.0.layer.1.DenseReluDense.wi_0.weight": None}, "is missing; choose its file"),
        ({"encoder.final_layer_norm.weight": torch.full((24,), float("inf"))}, "NaN or infinite"),
        ({"encoder.final_layer_norm.weight": torch.full((24,), -1e5)}, "holds numbers beyond 65504"),
        ({"encoder.final_layer_norm.weight": torch.zeros(24, dtype=torch.int8)}, "of the type torch.int8"),
        ({"encoder.block.999999.x": torch.zeros(1)}, "lacks"),
    ],
)
def test_other_files_are_refused(weights, tmp_path: Path, change: dict[str, Tensor | None], message: str):
    from i2l.i2l_core.host.infinity.text import load_text

    changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
    with pytest.raises(I2LError, match=message) as caught:
        load_text(saved(tmp_path, changed))
    assert str(caught.value).startswith("flan.safetensors: ")


class _Runs:
    def __reduce__(self):
        return print, ("this must not run",)


def test_pickles_that_hold_more_than_weights_are_refused(host, tmp_path: Path, capsys):
    from i2l.i2l_core.host.infinity.read import read_weights

    path = tmp_path / "x.pth"
    for content, message in (
        ({"a": _Runs(), "b": torch.zeros(1)}, "holds more than weights"),
        ({"a": 1, "b": torch.zeros(1)}, "'a' is no tensor"),
        ({"trainer": {}, "b": torch.zeros(1)}, "training checkpoint"),
        ([1, 2], "no table of weights"),
    ):
        torch.save(content, path)
        with pytest.raises(I2LError, match=message):
            read_weights(path, "weights")
    assert "must not run" not in capsys.readouterr().out
    path.write_bytes(b"PK nothing")
    with pytest.raises(I2LError, match=r"x.pth: expected weights, but it is damaged"):
        read_weights(path, "weights")
    with pytest.raises(I2LError, match="no such file"):
        read_weights(tmp_path / "y.pth", "weights")
    with pytest.raises(I2LError, match=r"a file that ends with \.safetensors or"):
        read_weights(tmp_path / "y.gguf", "weights")
    torch.save({"vae": {"w": torch.ones(2)}, "ema": {}}, path)
    assert read_weights(path, "weights")["w"].tolist() == [1, 1]
