"""A drawing with Infinity in the host: equal to the plain loop, with progress, previews, cancelling, little memory."""

from __future__ import annotations

import gc
from typing import Any

import infinity_models as models
import pytest
import torch
from torch import Tensor

from i2l.i2l_core.errors import I2LError
from i2l.i2l_core.infinity.blend import BlendSettings
from i2l.i2l_core.infinity.files import coder_weights, transformer_weights
from i2l.i2l_core.infinity.paths import Drawing, Sampling, Styling, draw, feature_of_words
from i2l.i2l_core.infinity.scales import scales_of
from i2l.i2l_core.infinity.transformer import Infinity

SCALES = scales_of(1.5, "0.06M")
COUNT = len(SCALES.maps)
TEXT = models.numbers("text", 1, 7, models.TEXT)
SAMPLING = Sampling(seed=5, temperature=0.7)
STYLING = Styling(
    torch.randn(1, 8, *SCALES.last, generator=torch.Generator().manual_seed(1)), BlendSettings()
)


@pytest.fixture(scope="module")
def model(host, tmp_path_factory: pytest.TempPathFactory):
    return models.hosted_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def vae(host):
    return models.hosted_vae(models.CODER)


@pytest.fixture
def bar(host, monkeypatch):
    """What the front end is told: (value, total, preview)."""
    import comfy.utils

    told: list[tuple] = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, value, total=None, preview=None: told.append((value, total or self.total, preview)),
    )
    return told


def plain() -> Infinity:
    model = Infinity(models.config())
    model.load_state_dict(transformer_weights(models.released_weights()))
    return model


def conditioning(*entries: tuple[Tensor, dict]) -> list:
    return [[states, {"pooled_output": None, **options}] for states, options in entries]


def test_a_run_is_the_plain_loop(model):
    from i2l.i2l_core.host.infinity.run import run

    drawing = Drawing(SCALES, [TEXT], rows=2)
    for styling in (None, STYLING, Styling(STYLING.part, BlendSettings(), (4, COUNT), content=True)):
        found = run(model, drawing, SAMPLING, styling)
        last: Any = list(draw(plain(), drawing, SAMPLING, styling))[-1]
        expected = last.content if styling is None else last.styled
        assert torch.equal(found.picture, expected)
        assert found.picture.shape == (2, 8, *SCALES.last)
        if styling is not None and styling.content:
            alone: Any = list(draw(plain(), drawing, SAMPLING))[-1]
            assert found.content is not None
            assert torch.equal(found.content, alone.content)
            assert not torch.equal(found.content, found.picture)
        else:
            assert found.content is None


def test_the_feature_of_words_is_that_of_the_core(model):
    from i2l.i2l_core.host.infinity.run import words_feature

    drawing = Drawing(SCALES, [TEXT])
    expected = feature_of_words(plain(), drawing, SAMPLING, 3)
    assert torch.equal(words_feature(model, drawing, SAMPLING, 3), expected)


def test_decoded_by_the_vae_it_is_a_picture_of_its_size(model, vae):
    from i2l.i2l_core.host.infinity.run import run

    found = run(model, Drawing(SCALES, [TEXT]), SAMPLING)
    cell = vae.config.cell  # of the tiny one
    height, width = SCALES.last
    assert vae.decode(found.picture).shape == (1, height * cell, width * cell, 3)


@pytest.mark.parametrize("styling", [None, STYLING], ids=["plain", "styled"])
def test_progress_follows_the_work(model, vae, bar, styling):
    from i2l.i2l_core.host.infinity.run import UNITS, run, scale_costs

    run(model, Drawing(SCALES, [TEXT]), SAMPLING, styling, vae)
    values = [value for value, _, _ in bar]
    assert values == sorted(values)
    assert values[-1] == UNITS
    assert {total for _, total, _ in bar} == {UNITS}
    previews = [preview for _, _, preview in bar if preview is not None]
    assert len(previews) == COUNT - 1
    assert len(bar) == COUNT * models.DEPTH + COUNT - 1
    kind, image, _ = previews[-1]
    assert kind == "JPEG"
    assert max(image.size) <= 16 * vae.config.cell
    costs = scale_costs(model.config, SCALES, SAMPLING, styling)
    after_first = [value for value, _, preview in bar if preview is not None]
    assert after_first[2] == round(UNITS * sum(costs[:3]) / sum(costs))


def test_costs_of_the_2b_at_a_megapixel(host):
    from i2l.i2l_core.host.infinity.run import scale_costs
    from i2l.i2l_core.infinity.config import InfinityConfig

    config = InfinityConfig(2048, 32, 16, 32, 2048, 512, 15, 16, 8192)
    scales = scales_of(1.0, "1M")
    plain = scale_costs(config, scales, Sampling(guidance=1.0), None)
    assert sum(plain) * config.depth / 1e12 == pytest.approx(39.5 + 18.0, rel=0.1)  # TFLOP of one row
    assert plain[-1] / sum(plain) == pytest.approx(0.46, abs=0.02)
    guided = scale_costs(config, scales, Sampling(guidance=[3.0] * 12 + [1.0]), None)
    assert guided[:12] == [2 * cost for cost in plain[:12]]
    assert guided[12] == plain[12]
    styled = scale_costs(config, scales, Sampling(guidance=1.0), Styling(None, BlendSettings(), (4, 10)))
    assert styled == [*plain[:3], *(2 * cost for cost in plain[3:10]), *plain[10:]]


@pytest.mark.parametrize("at", [(0, 0), (2, 3), (COUNT - 1, 1)])
def test_a_cancelled_run_leaves_nothing_and_the_next_is_the_same(model, monkeypatch, at):
    import comfy.model_management

    from i2l.i2l_core.host.infinity import run as module

    drawing = Drawing(SCALES, [TEXT])
    before = module.run(model, drawing, SAMPLING, STYLING)
    check, seen = module._check_cancelled, []

    def cancelled(index: int, block: int) -> None:
        seen.append((index, block))
        if (index, block) == at:
            comfy.model_management.interrupt_current_processing()
        check(index, block)

    gc.collect()
    known = tensors()
    monkeypatch.setattr(module, "_check_cancelled", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        module.run(model, drawing, SAMPLING, STYLING)
    assert seen[-1] == at
    gc.collect()
    assert tensors() <= known
    monkeypatch.setattr(module, "_check_cancelled", check)
    after = module.run(model, drawing, SAMPLING, STYLING)
    assert torch.equal(after.picture, before.picture)


def tensors() -> int:
    """How many four-dimensional tensors there are with the head width of the model: keys and values."""
    return sum(
        issubclass(type(found), Tensor)
        and found.ndim == 4
        and found.shape[-1] == models.WIDTH // models.HEADS
        for found in gc.get_objects()
    )


def test_memory_is_asked_for_and_too_little_is_said(model, vae, monkeypatch):
    import comfy.model_management

    from i2l.i2l_core.host.infinity import run as module
    from i2l.i2l_core.infinity.paths import run_nbytes

    asked = []
    load = comfy.model_management.load_models_gpu

    def record(held, memory_required=0, **options):
        asked.append((list(held), memory_required))
        load(held, memory_required=memory_required, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", record)
    drawing = Drawing(SCALES, [TEXT])
    needed = run_nbytes(model.config, drawing, SAMPLING, STYLING, 4)
    module.run(model, drawing, SAMPLING, STYLING)
    module.run(model, drawing, SAMPLING, STYLING, vae)
    assert asked[0] == ([model.patcher], needed)
    assert asked[1][0] == [model.patcher, vae.patcher]
    assert asked[1][1] > needed

    def full(index: int, block: int) -> None:
        raise comfy.model_management.OOM_EXCEPTION("no room")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_check_cancelled", full)
        with pytest.raises(
            I2LError, match=r"model\.safetensors: there is not enough memory to draw 1 x \d+ x \d+ pixels"
        ) as caught:
            module.run(model, drawing, SAMPLING, STYLING)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    module.run(model, drawing, SAMPLING, STYLING)


def test_a_preview_by_another_vae_is_refused(model, host):
    from i2l.i2l_core.host.infinity.run import run
    from i2l.i2l_core.host.infinity.vae import InfinityVAE
    from i2l.i2l_core.infinity.coder import CoderConfig

    other = CoderConfig(bits=16, base=32, encoder=(32, 64, 64), decoder=(32, 32, 64), res_blocks=1)
    with pytest.raises(I2LError, match="this VAE writes 16 bits, the model reads 8"):
        run(
            model,
            Drawing(SCALES, [TEXT]),
            SAMPLING,
            preview=InfinityVAE(other, coder_weights(models.coder_weights(other))),
        )


def test_one_text_is_for_all_scales_and_ranges_are_for_theirs(host):
    from i2l.i2l_core.host.infinity.prompts import texts_of

    layout, detail = torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    (found,) = texts_of("a prompt", conditioning((layout, {})), 7)
    assert torch.equal(found, layout)
    half = 3 / 7
    entries = conditioning(
        (layout, {"start_percent": 0.0, "end_percent": half}),
        (detail, {"start_percent": half, "end_percent": 1.0}),
    )
    found = texts_of("a prompt", entries, 7)
    assert [len(text[0]) for text in found] == [5, 5, 5, 3, 3, 3, 3]
    assert len({id(text) for text in found}) == 2  # what is one is read once


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "empty CONDITIONING"),
        ([[torch.zeros(1, 3, 8), {"area": (1, 1, 0, 0), "strength": 1.0}]], "area, strength, which Infinity"),
        ([[torch.zeros(1, 3, 8), {"attention_mask": torch.ones(1, 3)}]], "attention_mask"),
        (conditioning((torch.zeros(1, 3, 8), {}), (torch.zeros(1, 3, 8), {})), "for scale 1 of 7, got 2"),
        (conditioning((torch.zeros(1, 3, 8), {"start_percent": 0.5})), "for scale 1 of 7, got 0"),
        (conditioning((torch.full((1, 3, 8), float("nan")), {})), "NaN or infinite"),
        ([[torch.zeros(3, 8), {}]], "of a text, got none"),
    ],
)
def test_what_would_be_ignored_is_refused(host, entries, message):
    from i2l.i2l_core.host.infinity.prompts import texts_of

    with pytest.raises(I2LError, match=message):
        texts_of("a prompt", entries, 7)
