"""The stages that train the demo world's Infinity."""

from __future__ import annotations

import pytest
import torch

from i2l.i2l_core.demo.infinity import BITS, SCALES, TRANSFORMER
from i2l.i2l_core.demo.pool import Pool
from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.bits import features
from i2l.i2l_core.infinity.files import check_transformer, released_weights, transformer_weights
from i2l.i2l_core.infinity.paths import Drawing, Sampling, draw
from i2l.i2l_core.train.demo_stages.infinity import Taught, build, self_corrected
from i2l.i2l_core.train.demo_stages.infinity_code import as_input, fit, mixing, put_into
from i2l.i2l_core.train.demo_stages.infinity_vae import build as build_coder

TOKENS = sum(SCALES.counts)


def _latents(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, BITS, *SCALES.last, generator=torch.Generator().manual_seed(3))


def _stirred():
    """A network whose every weight matters."""
    model, head = build(5, torch.nn)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ada" in name or name.startswith("head"):
                p.add_(0.2 * torch.randn_like(p))
    return model.eval(), head


def test_without_flips_the_bits_are_those_of_the_picture():
    latents = _latents()
    found = features(latents, SCALES, False)
    bits, seen = self_corrected(latents, torch.zeros(2, TOKENS, BITS, dtype=torch.bool))
    assert torch.equal(bits, torch.cat(found.bits, 1).float())
    assert [tuple(s.shape) for s in seen] == [(2, n, BITS) for n in SCALES.counts[1:]]


def test_after_a_flip_later_scales_correct_it():
    latents = _latents()
    flips = torch.rand(2, TOKENS, BITS, generator=torch.Generator().manual_seed(1)) < 0.2
    bits, _ = self_corrected(latents, flips)
    plain, _ = self_corrected(latents, torch.zeros_like(flips))
    assert torch.equal(bits[:, :1], plain[:, :1])
    assert not torch.equal(bits[:, 1:], plain[:, 1:])


def test_all_scales_at_once_give_the_logits_of_one_after_the_other():
    model, head = _stirred()
    latents, text = _latents(), torch.randn(2, TRANSFORMER.text_length, TRANSFORMER.text_width)
    none = torch.zeros(2, TOKENS, BITS, dtype=torch.bool)
    bits, inputs = self_corrected(latents, none)
    taught = Taught(model, head)
    logits = []
    model.head.register_forward_hook(lambda module, args, out: logits.append(out.unflatten(-1, (-1, 2))))
    cover = torch.zeros(2, SCALES.counts[-1], 64)
    of_bits, _ = taught(text, torch.tensor([False, True]), inputs, bits, cover)
    whole = logits[0]
    texts = torch.cat([text[:1], model.empty_text(TRANSFORMER.text_length)])
    kept = features(latents, SCALES, False).bits
    drawing = Drawing(SCALES, (texts,), rows=2, kept=kept)
    steps = [step.logits for step in draw(model, drawing, Sampling(guidance=1.0, temperature=1.0))]
    stepwise = torch.cat(steps, 1)
    assert whole.std() > 0.1
    torch.testing.assert_close(whole, stepwise, rtol=1e-4, atol=1e-4)
    weight = torch.cat([torch.full((n,), n**-0.5) for n in SCALES.counts])
    entropy = torch.nn.functional.cross_entropy(
        stepwise.flatten(0, 2), bits.long().flatten(), reduction="none"
    )
    expected = (entropy.view(2, TOKENS, BITS).mean((0, 2)) * weight).sum() / weight.sum()
    torch.testing.assert_close(of_bits, expected, rtol=1e-4, atol=1e-4)


def test_the_encoder_computes_the_linear_code():
    generator = torch.Generator().manual_seed(2)
    pictures = torch.rand(24, 3, 8, 8, generator=generator)
    pictures = torch.nn.functional.interpolate(pictures, size=(128, 128), mode="bilinear") * 2 - 1
    rows = (pictures.permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8).numpy()  # BCHW -> BHWC
    pool = Pool(rows[:, None], rows[:, None, ..., 0], (), ())
    code, coder = fit(pool), build_coder(1)
    torch.testing.assert_close(mixing() @ mixing().T, torch.eye(BITS))
    seen = as_input(rows)
    put_into(coder.encoder, code, seen)
    with torch.no_grad():
        found, wanted = coder.encode(seen), code.encode(seen)
    assert wanted.square().sum(1).mean().sqrt() == pytest.approx(2.0, rel=0.02)
    assert (found - wanted).square().mean().sqrt() < 0.05 * wanted.square().mean().sqrt()


def test_a_trained_network_is_written_as_a_released_one():
    model, head = build(5, torch.nn)
    latents = _latents()
    none = torch.zeros(2, TOKENS, BITS, dtype=torch.bool)
    bits, inputs = self_corrected(latents, none)
    text = torch.randn(2, TRANSFORMER.text_length, TRANSFORMER.text_width)
    loss, _ = Taught(model, head)(text, torch.tensor([False, True]), inputs, bits, torch.zeros(2, 64, 64))
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad if p.grad is not None else 0)
    weights = model.state_dict()
    released = released_weights(weights)
    assert check_transformer({k: tuple(v.shape) for k, v in released.items()}) == TRANSFORMER
    again = transformer_weights(released)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    weights["blocks.0.sa.qk.bias"][-1] = 1
    with pytest.raises(I2LError, match=r"blocks\.0\.sa\.qk\.bias"):
        released_weights(weights)
