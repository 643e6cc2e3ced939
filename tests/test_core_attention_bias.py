"""Weights and masks of references: exact against giving a picture twice, not at all, or in another order."""

from __future__ import annotations

import pytest
import torch
from tiny_world import ENCODER, predictor_config
from torch import Tensor, nn

from i2l.i2l_core.encoders import NAFLEX, EncoderConfig, VisionEncoder
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.predictors.query.attention_bias import attention_bias
from i2l.i2l_core.predictors.query.network import QueryNetwork
from i2l.i2l_core.references import Reference, references_with, with_positive_weight

_NAFLEX = EncoderConfig(
    NAFLEX,
    {**{k: v for k, v in ENCODER.config.items() if k != "image_size"}, "num_patches": 16},
    max_patches=16,
)


@pytest.fixture(params=[ENCODER, _NAFLEX], ids=["square", "naflex"])
def predict(request: pytest.FixtureRequest):
    """References -> every row of A and column of B, in fp64."""
    encoder = VisionEncoder(request.param).double()
    predictor = QueryNetwork(predictor_config()).double()
    for name, parameter in predictor.named_parameters():
        if name.startswith("heads.B"):
            nn.init.normal_(parameter, std=0.1)

    @torch.no_grad()
    def run(*references: Reference) -> Tensor:
        tokens = [encoder(encoder.preprocess(one.pixels)[None].double()) for one in references]
        bias = attention_bias(references, [encoder.grid(*one.size) for one in references])
        rows = predictor(torch.cat(tokens, dim=1), None if bias is None else bias.double()).rows
        return torch.cat([part.flatten() for part in rows])

    return run


def picture(*size: int) -> Tensor:
    return torch.rand(*(size or (64, 64)), 3)


def test_weight_2_is_the_picture_given_twice(predict):
    one, other = picture(), picture(40, 100)
    twice = predict(Reference(one), Reference(one), Reference(other))
    assert torch.allclose(predict(Reference(one, 2), Reference(other)), twice, rtol=0, atol=1e-6)
    assert not torch.allclose(predict(Reference(one), Reference(other)), twice, rtol=0, atol=1e-4)


def test_a_single_picture_counts_against_the_queries(predict):
    one = picture()
    assert torch.allclose(predict(Reference(one, 3)), predict(*[Reference(one)] * 3), rtol=0, atol=1e-6)
    assert not torch.allclose(predict(Reference(one, 3)), predict(Reference(one)), rtol=0, atol=1e-4)


def test_weight_0_is_the_picture_left_out(predict):
    one, other = Reference(picture()), Reference(picture(), 0)
    assert with_positive_weight([one, other]) == [one]
    assert torch.equal(predict(one, other), predict(one, other))
    assert torch.allclose(predict(one, other), predict(one), rtol=0, atol=1e-9)


def test_a_mask_of_ones_changes_nothing_at_all(predict):
    pixels = picture(48, 96)
    assert torch.equal(predict(Reference(pixels, mask=torch.ones(7, 9))), predict(Reference(pixels)))


def test_order_does_not_matter(predict):
    masked = Reference(picture(), 0.3, torch.rand(64, 64))
    others = [Reference(picture(30, 60), 2.5), Reference(picture())]
    assert torch.allclose(predict(masked, *others), predict(*others, masked), rtol=0, atol=1e-9)


def test_a_token_counts_as_the_mean_of_the_mask_over_its_patch():
    mask = torch.rand(64, 64)
    reference = Reference(picture(), 0.5, mask)
    bias = attention_bias([reference, Reference(picture())], [(4, 4), (2, 2)])
    assert bias is not None
    patches = mask.unflatten(1, (4, 16)).unflatten(0, (4, 16)).mean(dim=(1, 3))
    assert torch.allclose(bias[0, :16].exp().view(4, 4), 0.5 * patches)
    assert torch.equal(bias[0, 16:], torch.zeros(4))


def test_a_masked_patch_is_left_out(predict):
    mask = torch.ones(64, 64)
    mask[:32] = 0
    bias = attention_bias([Reference(picture(), mask=mask)], [(4, 4)])
    assert bias is not None
    assert torch.equal(bias[0], torch.tensor([-torch.inf] * 8 + [0.0] * 8))
    assert predict(Reference(picture(), mask=mask)).isfinite().all()


def test_what_a_mask_hides_can_be_filled_with_the_mean_colour_of_the_rest():
    pixels, mask = picture(10, 20), torch.zeros(10, 20)
    mask[:, :5] = 1
    filled = Reference(pixels, 2.0, mask).mask_filled()
    assert filled.mask is None
    assert filled.weight == 2
    assert torch.equal(filled.pixels[:, :5], pixels[:, :5])
    assert torch.allclose(filled.pixels[:, 5:], pixels[:, :5].mean(dim=(0, 1)).expand(10, 15, 3))
    plain = Reference(pixels)
    assert plain.mask_filled() is plain


def test_hashes_tell_masks_apart_and_pictures_alike():
    pixels = picture()
    plain, masked = Reference(pixels), Reference(pixels, mask=torch.rand(64, 64))
    assert plain.hash == masked.hash
    assert plain.mask_hash == Reference(pixels, mask=torch.ones(64, 64)).mask_hash == ""
    assert masked.mask_hash != Reference(pixels, mask=torch.rand(64, 64)).mask_hash != ""


def test_a_batch_takes_one_mask_or_one_each():
    batch, masks = torch.rand(3, 20, 30, 3), torch.rand(3, 10, 15)
    each = references_with(batch, 0.5, masks)
    assert [one.weight for one in each] == [0.5] * 3
    assert len({one.mask_hash for one in each}) == 3
    assert len({one.mask_hash for one in references_with(batch, 1, masks[:1])}) == 1
    assert [one.hash for one in references_with(batch, 1)] == [one.hash for one in each]
    assert each[0].full_mask is not None
    assert tuple(each[0].full_mask.shape) == (20, 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reference(picture(), -1.0), "weight of a reference must be .* 0 or more, got -1.0"),
        (lambda: Reference(picture(), float("nan")), "weight of a reference must be .* got nan"),
        (lambda: Reference(picture(), float("inf")), "weight of a reference must be .* got inf"),
        (
            lambda: Reference(picture(), mask=torch.zeros(64, 64)),
            "mask: it is black everywhere.*disconnect it",
        ),
        (lambda: Reference(picture(), mask=torch.full((8, 8), float("nan"))), "mask: it holds NaN"),
        (
            lambda: with_positive_weight([Reference(picture(), 0)]),
            "the weights of all references are 0; give",
        ),
        (
            lambda: references_with(torch.rand(2, 16, 16, 3), 1, torch.ones(3, 8, 8)),
            "got 3 masks for 2 pictures",
        ),
        (
            lambda: references_with(torch.rand(2, 16, 16, 3), 1, torch.ones(8)),
            r"mask: expected a MASK .*\(8,\)",
        ),
    ],
)
def test_weights_and_masks_that_make_no_sense(make, message: str):
    with pytest.raises(I2LError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
