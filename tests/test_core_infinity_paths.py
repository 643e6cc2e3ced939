"""Paths, memory and style: each equals something plainer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import infinity_models as models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity import paths as paths_module
from i2l.i2l_core.infinity.bits import as_tokens, codes, features, resized
from i2l.i2l_core.infinity.blend import REPLACE, TOP, BlendSettings, style_part
from i2l.i2l_core.infinity.draw import Draws, drawn_bits
from i2l.i2l_core.infinity.files import transformer_weights
from i2l.i2l_core.infinity.paths import Drawing, Sampling, Styling, draw, feature_of_words
from i2l.i2l_core.infinity.rope import rotation
from i2l.i2l_core.infinity.scales import Scales
from i2l.i2l_core.infinity.transformer import Infinity, normal

SCALES = Scales(((1, 1), (2, 2), (4, 3), (5, 4), (7, 6), (8, 7)), (16, 14))
STRUCTURE = (4, 6)


@pytest.fixture(scope="module")
def model() -> Infinity:
    model = Infinity(models.config())
    model.load_state_dict(transformer_weights(models.released_weights()))
    return model


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return Drawing(SCALES, [models.numbers("text", 1, 7, models.TEXT)])


def sampling(**changes) -> Sampling:
    return replace(Sampling(5, 3.0, 0.7), **changes)


def reference(seed: int = 1) -> Tensor:
    latent = torch.randn(1, 8, *SCALES.last, generator=torch.Generator().manual_seed(seed))
    return features(latent, SCALES, False).sums[2]


def styling(settings: BlendSettings | None = None, seed: int = 1, **changes) -> Styling:
    settings = settings or BlendSettings()
    return replace(Styling(style_part([reference(seed)], [1.0], settings), settings, STRUCTURE), **changes)


def last(steps: Sequence[Any]) -> Any:
    return steps[-1]


def run(
    model: Infinity, drawing: Drawing, sampling: Sampling, styling: Styling | None = None
) -> list[Any]:  # Step; which paths it has is what tests know
    return list(draw(model, drawing, sampling, styling))


# The plain loop: every scale computes the whole sequence again, with a mask, and keeps nothing


def whole_pass(
    model: Infinity, text: Tensor, rows: int, inputs: list[Tensor], corrected: Sequence[bool]
) -> Tensor:
    """Hidden states of all scales after one pass. `inputs`: of the second scale on, (rows, n, bits). Where `corrected`
    says so for a scale, the second row's q and k are overwritten by the first row's, in all blocks."""
    prompt = model.prompt(text, torch.float32)
    x = torch.cat(
        [model.start(prompt).expand(rows, -1, -1)]
        + [model.embed(tokens, i + 1, torch.float32) for i, tokens in enumerate(inputs)],
        1,
    )
    counts = SCALES.counts[: len(inputs) + 1]
    level = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    mask = level[:, None] >= level[None]
    turns = [rotation(SCALES, i, model.config.head_width) for i in range(len(counts))]
    cos, sin = (torch.cat(part)[:, :] for part in zip(*turns, strict=True))
    over = [c for c, count in zip(corrected, counts, strict=False) for _ in range(count)]
    for block, words in zip(model.each_block(), prompt.words, strict=True):
        gain1, gain2, scale1, scale2, shift1, shift2 = (block.ada_gss + prompt.six).unbind(2)
        h = normal(x) * (scale1 + 1) + shift1
        q, k = (t.unflatten(-1, (2, 32)).transpose(1, 2) for t in block.sa.qk(h).chunk(2, -1))
        v = block.sa.v(h).unflatten(-1, (2, 32)).transpose(1, 2)
        q = F.normalize(q, dim=-1) * block.sa.scale_mul_1H11.exp()
        q, k = turned(q, cos, sin), turned(F.normalize(k, dim=-1), cos, sin)
        if any(over):
            q[1, :, over], k[1, :, over] = q[0, :, over], k[0, :, over]
        weights = (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + block.sa.proj((weights @ v).transpose(1, 2).flatten(2)) * gain1
        x = x + block.ca(block.ca_norm(x), words)
        x = x + block.ffn(normal(x) * (scale2 + 1) + shift2) * gain2
    return x


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turn = torch.complex(cos.double(), sin.double())
    return (
        torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * turn)
        .flatten(-2)
        .float()
    )


def plain_run(
    model: Infinity, drawing: Drawing, how: Sampling, styling: Styling | None = None
) -> tuple[list[Tensor], Tensor]:
    """Sums of both rows after each scale, and all logits of the last, by `whole_pass`."""
    assert isinstance(how.guidance, float)
    assert isinstance(how.temperature, float)
    rows = 1 if styling is None else 2
    texts = [drawing.texts[0], model.empty_text(drawing.texts[0].shape[1])]
    draws = [Draws(how.seed, 1)]
    if styling is not None and not styling.shared:
        draws.append(Draws(how.seed, 1, path=1))
    total, inputs, sums = torch.zeros(rows, 8, *SCALES.last), [], []
    first, final = (styling.structure or (99, 0)) if styling else (99, 0)
    corrected = [first <= i + 1 <= final for i in range(len(SCALES.maps))]
    logits = torch.zeros(())
    for i, (maps, count) in enumerate(zip(SCALES.maps, SCALES.counts, strict=True)):
        sides = []
        for text in texts:
            x = whole_pass(model, text, rows, inputs, corrected)[:, -count:]
            prompt = model.prompt(text, torch.float32)
            sides.append(model.logits(x, prompt) / how.temperature)
        logits = how.guidance * sides[0] + (1 - how.guidance) * sides[1]
        bits = drawn_bits(logits, torch.cat([d.next(count, 8) for d in draws]), how.top_p)
        total = total + resized(codes(bits, maps, False), SCALES.last)
        if styling is not None and styling.part is not None and i + 1 == styling.settings.step:
            own = style_part([total[1:]], [1.0], styling.settings)
            total = torch.cat((total[:1], total[1:] + styling.settings.strength * (styling.part - own)))
        sums.append(total)
        if i + 1 < len(SCALES.maps):
            inputs.append(as_tokens(resized(total, SCALES.maps[i + 1]), False))
    return sums, logits


def test_a_run_from_memory_is_one_pass_over_the_whole_sequence(model, drawing):
    with torch.inference_mode():
        sums, logits = plain_run(model, drawing, sampling())
    steps = run(model, drawing, sampling())
    for step, expected in zip(steps, sums, strict=True):
        torch.testing.assert_close(step.content, expected)
    torch.testing.assert_close(steps[-1].logits, logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("structure", [None, (4, 6), (4, 5), (5, 6), (1, 3), (1, 6)])
def test_a_styled_run_is_the_plain_loop_that_overwrites_q_and_k(model, drawing, structure, shared):
    what = styling(structure=structure, content=True, shared=shared)
    with torch.inference_mode():
        sums, logits = plain_run(model, drawing, sampling(), what)
    steps = run(model, drawing, sampling(), what)
    for step, expected in zip(steps, sums, strict=True):
        torch.testing.assert_close(step.content, expected[:1])
        torch.testing.assert_close(step.styled, expected[1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(steps[-1].logits, logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_the_content_path_is_a_run_without_a_style(model, drawing, shared):
    plain = run(model, drawing, sampling())
    for structure in (STRUCTURE, None):
        both = run(model, drawing, sampling(), styling(shared=shared, structure=structure, content=True))
        for a, b in zip(plain, both, strict=True):
            assert torch.equal(a.content, b.content)
        assert not torch.equal(last(both).styled, last(plain).content)


def test_the_structure_kept_with_nothing_blended_is_the_content(model, drawing):
    steps = run(model, drawing, sampling(), styling(part=None))
    assert torch.equal(last(steps).content, last(steps).styled)


def test_the_structure_may_be_kept_from_any_scale_before_the_blend(model, drawing):
    styled = [
        last(run(model, drawing, sampling(), styling(structure=(first, 6)))).styled for first in range(1, 6)
    ]
    for other in styled[1:4]:
        assert torch.equal(styled[0], other)
    assert not torch.equal(styled[0], styled[4])


def test_alpha_0_replaces_and_strength_0_and_the_own_style_change_nothing(model, drawing):
    plain = run(model, drawing, sampling())

    def styled(settings: BlendSettings, reference_: Tensor | None = None) -> Tensor:
        part = style_part([reference() if reference_ is None else reference_], [1.0], settings)
        return last(run(model, drawing, sampling(), styling(settings, part=part))).styled

    torch.testing.assert_close(styled(BlendSettings(alpha=0.0)), styled(BlendSettings(REPLACE)))
    torch.testing.assert_close(styled(BlendSettings(TOP, k=8)), styled(BlendSettings(REPLACE)))
    torch.testing.assert_close(styled(BlendSettings(alpha=100.0)), styled(BlendSettings(TOP, k=1)))
    assert torch.equal(styled(BlendSettings(strength=0.0)), last(plain).content)
    own = plain[2].content
    torch.testing.assert_close(styled(BlendSettings(), own), last(plain).content, atol=1e-5, rtol=0)


def test_a_structure_that_ends_stops_the_content_path_and_changes_nothing_before(model, drawing, monkeypatch):
    whole = run(model, drawing, sampling(), styling(structure=(4, 5), content=True))
    calls: list[int] = []
    forward = type(model.blocks[0]).forward
    monkeypatch.setattr(
        type(model.blocks[0]),
        "forward",
        lambda self, x, *a, **k: calls.append(len(x)) or forward(self, x, *a, **k),
    )
    ended = run(model, drawing, sampling(), styling(structure=(4, 5)))
    for a, b in zip(whole, ended, strict=True):
        assert torch.equal(a.styled, b.styled)
    assert [step.content is None for step in ended] == [False] * 5 + [True]
    per_scale = torch.tensor(calls).view(6, 4 * 2)
    assert per_scale.unique(dim=1).flatten().tolist() == [1, 1, 1, 2, 2, 1]


def test_without_a_structure_the_content_path_ends_at_the_blend(model, drawing):
    whole = run(model, drawing, sampling(), styling(structure=None, content=True))
    ended = run(model, drawing, sampling(), styling(structure=None))
    assert torch.equal(last(whole).styled, last(ended).styled)
    assert [len(step.bits) for step in ended] == [1] * 6


@pytest.mark.parametrize("style", [None, styling(), styling(structure=(4, 5)), styling(shared=False)])
def test_a_batch_is_single_runs(model, drawing, style):
    together = last(run(model, replace(drawing, rows=3), sampling(), style))
    for row in range(3):
        alone = last(run(model, drawing, sampling(seed=5 + row), style))
        for a, b in ((together.content, alone.content), (together.styled, alone.styled)):
            assert (a is None) == (b is None)
            if a is not None:
                assert torch.equal(a[row : row + 1], b)


def test_paths_that_draw_on_their_own_differ_from_the_first_scale(model, drawing):
    steps = run(model, drawing, sampling(), styling(shared=False))
    assert not torch.equal(steps[0].bits[:1], steps[0].bits[1:])


def test_dropping_the_side_that_guides_keeps_every_bit(model, drawing, monkeypatch):
    how = sampling(guidance=(3.0, 1.0, 2.0, 3.0, 1.0, 1.0))
    expected = run(model, drawing, how)
    monkeypatch.setattr(paths_module._Run, "_drop", lambda self, index: None)
    for a, b in zip(expected, run(model, drawing, how), strict=True):
        assert torch.equal(a.bits, b.bits)


def test_a_prompt_of_one_scale_changes_that_scale_and_what_follows(model, drawing):
    other = models.numbers("other", 1, 5, models.TEXT)
    texts = [*drawing.texts * 3, other, *drawing.texts * 2]
    plain, mixed = run(model, drawing, sampling()), run(model, replace(drawing, texts=texts), sampling())
    assert [torch.equal(a.bits, b.bits) for a, b in zip(plain, mixed, strict=True)][:4] == [True] * 3 + [
        False
    ]
    same = run(model, replace(drawing, texts=[t.clone() for t in drawing.texts * 6]), sampling())
    assert torch.equal(last(same).content, last(plain).content)


def test_kept_bits_of_a_picture_give_its_feature_back(model, drawing):
    latent = torch.randn(1, 8, *SCALES.last, generator=torch.Generator().manual_seed(3))
    picture = features(latent, SCALES, False)
    steps = run(model, replace(drawing, kept=picture.bits), sampling())
    for step, sums in zip(steps, picture.sums, strict=True):
        torch.testing.assert_close(step.content, sums)
    part = run(model, replace(drawing, kept=picture.bits[:3]), sampling())
    torch.testing.assert_close(part[2].content, picture.sums[2])
    assert not torch.allclose(part[3].content, picture.sums[3])
    styled = run(model, replace(drawing, kept=picture.bits), sampling(), styling(part=None, structure=None))
    torch.testing.assert_close(styled[2].styled, picture.sums[2])
    assert not torch.allclose(last(styled).styled, picture.sums[5])


@pytest.mark.parametrize("step", [1, 3, 6])
def test_words_give_the_feature_of_the_picture_that_they_would_give(model, drawing, step):
    found = feature_of_words(model, drawing, sampling(), step)
    assert torch.equal(found, run(model, drawing, sampling())[step - 1].content)
    with pytest.raises(I2LError, match="from 1 to 6, got 7"):
        feature_of_words(model, drawing, sampling(), 7)


def test_the_own_words_as_a_style_change_nothing(model, drawing):
    settings = BlendSettings(alpha=0.5)
    own = style_part([feature_of_words(model, drawing, sampling(), 3)], [1.0], settings)
    styled = last(run(model, drawing, sampling(), styling(settings, part=own)))
    torch.testing.assert_close(styled.styled, styled.content, atol=1e-5, rtol=0)


def test_tokens_of_two_by_two_places_take_a_style_as_any():
    model = Infinity(models.config(32, True))
    model.load_state_dict(transformer_weights(models.released_weights(32)))
    what = Drawing(SCALES, [models.numbers("text", 1, 7, models.TEXT)], rows=2)
    plain = run(model, what, sampling())
    settings = BlendSettings(step=2)
    own = style_part([plain[1].content], [1.0], settings)
    same = last(run(model, what, sampling(), styling(settings, part=own, structure=(3, 6))))
    torch.testing.assert_close(same.styled, last(plain).content, atol=1e-5, rtol=0)
    other = style_part([torch.randn(1, 8, 16, 14)], [1.0], settings)
    styled = last(run(model, what, sampling(), styling(settings, part=other, structure=(3, 6))))
    assert torch.equal(styled.content, last(plain).content)
    assert not torch.allclose(styled.styled, styled.content)


def test_a_stopped_run_leaves_nothing_and_the_next_is_the_same(model, drawing):
    expected = last(run(model, drawing, sampling(), styling())).styled
    kept: list[weakref.ref[Tensor]] = []
    made = paths_module.Memory

    def memory(*args, **kwargs):
        found = made(*args, **kwargs)
        kept.extend(weakref.ref(tensor) for layer in found._keys for tensor in layer)
        return found

    def stop(scale: int, block: int) -> None:
        if (scale, block) == (3, 2):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths_module, "Memory", memory)
        with pytest.raises(KeyboardInterrupt):
            list(draw(model, drawing, sampling(), styling(), after_block=stop))
    assert kept
    assert not any(ref() is not None for ref in kept)
    assert torch.equal(last(run(model, drawing, sampling(), styling())).styled, expected)


BAD = {
    "4096": ({"texts": [torch.zeros(1, 7, 4096)]}, {}, {}, r"width 128, got \(1, 7, 4096\).*T5-XXL"),
    "long": ({"texts": [torch.zeros(1, 33, 128)]}, {}, {}, "1 to 32 tokens, got 33"),
    "empty": ({"texts": [torch.zeros(1, 0, 128)]}, {}, {}, "1 to 32 tokens, got 0"),
    "no text": ({"texts": []}, {}, {}, "a prompt, or 6, one for each scale, got 0"),
    "texts": ({"texts": [torch.zeros(1, 7, 128)] * 2}, {}, {}, "got 2"),
    "rows": ({"texts": [torch.zeros(2, 7, 128)], "rows": 3}, {}, {}, "for 1 or 3 pictures, got 2"),
    "negative": ({"negatives": [torch.zeros(1, 7, 64)]}, {}, {}, "a negative prompt of width 128"),
    "start": ({"kept": [torch.ones(1, 4, 8)]}, {}, {}, "1 tokens of 8 bits at scale 1"),
    "start rows": ({"kept": [torch.ones(2, 1, 8)], "rows": 3}, {}, {}, "start of 1 or 3 pictures, got 2"),
    "cfg": ({}, {"guidance": (1.0, 2.0)}, {}, "one guidance or 6, one for each scale, got 2"),
    "nan": ({}, {"guidance": float("nan")}, {}, "guidance of finite numbers"),
    "cold": ({}, {"temperature": 0.0}, {}, "temperature above 0, got 0"),
    "top_p": ({}, {"top_p": 0.0}, {}, "top_p above 0"),
    "block": ({}, {"guided_block": 4}, {}, "guided block from 0 to 3, got 4"),
    "late": ({}, {}, {"settings": BlendSettings(step=7)}, "style scale from 1 to 6, got 7"),
    "style": ({}, {}, {"part": torch.zeros(1, 16, 8, 7)}, "style of 8 x 8 x 7, got 16 x 8 x 7"),
    "styles": ({}, {}, {"part": torch.zeros(2, 8, 8, 7)}, "style for 1 or 1 pictures, got 2"),
    "structure": ({}, {}, {"structure": (0, 3)}, "from scale 1 on, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(model, drawing, name):
    what, how, style, message = BAD[name]
    with pytest.raises(I2LError, match=message):
        next(draw(model, replace(drawing, **what), sampling(**how), styling(**style)))


def test_too_many_scales_are_refused(model, drawing):
    scales = Scales(tuple((i + 1, i + 1) for i in range(16)), (16, 16))
    with pytest.raises(I2LError, match="at most 15 scales, got 16"):
        next(draw(model, replace(drawing, scales=scales), sampling()))


def test_logits_that_are_not_finite_are_said_at_the_end(drawing):
    weights = transformer_weights(models.released_weights())
    weights["head.bias"][3] = torch.nan
    broken = Infinity(models.config())
    broken.load_state_dict(weights)
    with pytest.raises(I2LError, match="not finite"):
        run(broken, drawing, sampling())


def test_several_references_are_a_weighted_mean():
    settings = BlendSettings()
    a, b = reference(1), reference(2)
    mixed = style_part([a, b], [2.0, 1.0], settings)
    torch.testing.assert_close(style_part([a, a, b], [1.0] * 3, settings), mixed)
    alone = (2 * style_part([a], [1.0], settings) + style_part([b], [7.0], settings)) / 3
    torch.testing.assert_close(mixed, alone)
    with pytest.raises(I2LError, match="references of one size"):
        style_part([a, a[..., :3]], [1.0, 1.0], settings)
    with pytest.raises(I2LError, match="a weight for each reference"):
        style_part([a], [], settings)
    with pytest.raises(I2LError, match="weight of a reference"):
        style_part([a], [0.0], settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "swap"}, "mode of blend"),
        ({"alpha": float("nan")}, "alpha from 0"),
        ({"k": 0}, "k must be"),
        ({"strength": float("inf")}, "strength from"),
        ({"step": 0}, "the style's scale must be"),
    ],
)
def test_bad_blend_settings_are_refused(changes, message):
    with pytest.raises(I2LError, match=message):
        BlendSettings(**changes)
