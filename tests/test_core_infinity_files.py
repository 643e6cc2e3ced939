"""Released files by names and shapes, and the picture coder against numbers of the reference implementation."""

from __future__ import annotations

from pathlib import Path

import infinity_models as models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.coder import Coder, CoderConfig
from i2l.i2l_core.infinity.files import (
    CODER,
    TRANSFORMER,
    check_coder,
    check_transformer,
    coder_weights,
    joined,
    kind_of,
    shard_names,
    transformer_weights,
)
from i2l.i2l_core.infinity.scales import Scales
from i2l.i2l_core.infinity.transformer import Infinity

FIXTURES = Path(__file__).parent / "data" / "infinity_fixtures.safetensors"
SCALES = Scales(((1, 1), (2, 2), (4, 3), (6, 5), (10, 8)), (10, 8))


def shapes_of(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_every_released_form_of_a_transformer_has_its_weights_where_they_belong(chunks: int) -> None:
    weights = models.released_weights(chunks=chunks)
    config = check_transformer(shapes_of(weights))
    assert (config.depth, config.width, config.heads) == (models.DEPTH, models.WIDTH, models.HEADS)
    found = transformer_weights(weights)
    model = Infinity(config, device="meta")
    assert shapes_of(found) == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    third = "blocks.2." if not chunks else f"block_chunks.{2 * chunks // 4}.module.{2 % (4 // chunks)}."
    qkv = torch.cat((found["blocks.2.sa.qk.weight"], found["blocks.2.sa.v.weight"]))
    assert torch.equal(qkv, weights[third + "sa.mat_qkv.weight"])
    q_bias, v_bias = weights[third + "sa.q_bias"], weights[third + "sa.v_bias"]
    assert torch.equal(found["blocks.2.sa.qk.bias"], torch.cat((q_bias, torch.zeros(64))))
    assert torch.equal(found["blocks.2.sa.v.bias"], v_bias)
    kv = torch.cat((torch.zeros(64), weights[third + "ca.v_bias"]))
    assert torch.equal(found["blocks.2.ca.mat_kv.bias"], kv)
    assert found["blocks.2.ffn.fc1.weight"].data_ptr() == weights[third + "ffn.fc1.weight"].data_ptr()


def test_zero_biases_may_be_missing_and_nothing_else() -> None:
    shapes = models.released_shapes()
    slim = {name: shape for name, shape in shapes.items() if "zero_k_bias" not in name}
    assert check_transformer(slim) == check_transformer(shapes)
    for name in slim:
        with pytest.raises(I2LError):
            check_transformer({k: v for k, v in shapes.items() if k != name})


def test_bad_transformers_are_refused_by_name() -> None:
    shapes = models.released_shapes()
    with pytest.raises(I2LError, match=r"lacks blocks\.3\.ffn\.fc2\.bias"):
        check_transformer({k: v for k, v in shapes.items() if k != "block_chunks.1.module.1.ffn.fc2.bias"})
    with pytest.raises(I2LError, match="also has extra"):
        check_transformer({**shapes, "extra": (3,)})
    with pytest.raises(I2LError, match=r"head\.weight of shape \(16, 64\), got \(16, 65\)"):
        check_transformer({**shapes, "head.weight": (16, 65)})
    with pytest.raises(I2LError, match="training checkpoint"):
        check_transformer({"trainer.gpt_fsdp.head.weight": (3,)})
    gap = {k.replace("module.0.", "module.5."): v for k, v in shapes.items()}
    with pytest.raises(I2LError, match="chunk 0 lacks some"):
        check_transformer(gap)
    mixed = {k.replace("block_chunks.1.module.1.", "blocks.0."): v for k, v in shapes.items()}
    with pytest.raises(I2LError):
        check_transformer(mixed)


def test_shards_are_named_by_any_of_them() -> None:
    assert shard_names("model-00002-of-00003.safetensors") == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert shard_names("infinity_2b_reg.pth") == ["infinity_2b_reg.pth"]
    with pytest.raises(I2LError, match="at most 1000 files"):
        shard_names("model-1-of-99999999.safetensors")
    shapes = models.released_shapes()
    names = sorted(shapes)
    parts = {"a": {k: shapes[k] for k in names[:50]}, "b": {k: shapes[k] for k in names[50:]}}
    assert check_transformer(joined(parts)) == check_transformer(shapes)
    with pytest.raises(I2LError, match="b: it has"):
        joined({"a": shapes, "b": shapes})


def test_what_a_file_is_of() -> None:
    assert kind_of(models.released_shapes()) == TRANSFORMER
    for wrapped in (True, False):
        assert kind_of(models.coder_shapes(models.CODER, wrapped)) == CODER
    assert kind_of(["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"]) is None


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_vae_has_its_weights_where_they_belong(wrapped: bool) -> None:
    weights = models.coder_weights(models.CODER, wrapped)
    others = {"quantizer.lfq.mask": torch.zeros(8), "discriminator.conv.weight": torch.zeros(1)}
    assert check_coder(shapes_of({**weights, **others})) == models.CODER
    assert check_coder({f"vae.{name}": shape for name, shape in shapes_of(weights).items()}) == models.CODER
    found = coder_weights({**weights, **others})
    plain = models.coder_weights(models.CODER, False)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_bad_vaes_are_refused_by_name() -> None:
    shapes = models.coder_shapes(models.CODER)
    for name in shapes:
        with pytest.raises(I2LError):
            check_coder({k: v for k, v in shapes.items() if k != name})
    with pytest.raises(I2LError, match=r"also has encoder\.extra"):
        check_coder({**shapes, "encoder.extra": (3,)})
    with pytest.raises(I2LError, match=r"lacks encoder\.mid\.block_2\.conv1\.bias"):
        check_coder({k: v for k, v in shapes.items() if k != "encoder.mid.block_2.conv1.conv.bias"})
    with pytest.raises(I2LError, match=r"conv_in\.bias of shape \(32,\), got \(33,\)"):
        check_coder({**shapes, "encoder.conv_in.conv.bias": (33,)})
    with pytest.raises(I2LError, match="under two names"):
        check_coder({**shapes, "encoder.conv_in.bias": (32,)})
    with pytest.raises(I2LError, match=r"convolution encoder\.conv_out, got none"):
        check_coder({"x": (1,)})
    with pytest.raises(I2LError, match="as many levels"):
        CoderConfig(8, 32, (32,), (32, 32))
    with pytest.raises(I2LError, match="multiples of 32 or 24, got 33"):
        CoderConfig(8, 33, (32,), (32,))


def test_pictures_are_coded_as_by_the_reference() -> None:
    """tests/data: what the reference's Encoder, MultiScaleBSQ and Decoder computed for the weights of the formula."""
    expected = load_file(FIXTURES)
    coder = Coder(check_coder(shapes_of(models.coder_weights(models.CODER))))
    coder.load_state_dict(coder_weights(models.coder_weights(models.CODER)))
    with torch.inference_mode():
        latent = coder.encode(models.numbers("picture", 1, 3, 40, 32))
        found = features(latent, SCALES, False)
        picture = coder.decode(expected["coder.sum"])
    torch.testing.assert_close(latent, expected["coder.latent"], atol=1e-5, rtol=0)
    bits = np.packbits(torch.cat([scale.flatten() for scale in found.bits]).numpy())
    assert (bits == expected["coder.bits"].numpy()).all()
    torch.testing.assert_close(found.sums[-1], expected["coder.sum"], atol=1e-6, rtol=0)
    torch.testing.assert_close(picture, expected["coder.picture"], atol=1e-5, rtol=0)


def test_pictures_that_do_not_fit_are_refused() -> None:
    coder = Coder(models.CODER)
    with pytest.raises(I2LError, match="multiples of 4, got 40 and 30"):
        coder.encode(torch.zeros(1, 3, 40, 30))
    with pytest.raises(I2LError, match="latent of 8 channels, got 16"):
        coder.decode(torch.zeros(1, 16, 4, 4))


def test_a_preview_is_the_picture_of_the_means() -> None:
    coder = Coder(models.CODER)
    coder.load_state_dict(coder_weights(models.coder_weights(models.CODER)))
    latent = torch.randn(1, 8, 20, 16)
    with torch.inference_mode():
        small, first, large = (coder.preview(latent, drawn) for drawn in (10, 1, 64))
        means = latent.unflatten(2, (10, 2)).unflatten(4, (8, 2)).mean((3, 5))
        torch.testing.assert_close(small, coder.decode(means))
        whole = latent[..., :10, :8]
        assert torch.equal(coder.preview(whole, 10), coder.decode(whole))
    assert small.shape == (1, 3, 40, 32)
    assert first.shape == (1, 3, 32, 24)  # 8 places at least
    assert large.shape == (1, 3, 64, 52)  # 16 at most
