"""How much a run has in use: the formula against what PyTorch allocates, and the figures of the released models."""

from __future__ import annotations

import importlib
from pathlib import Path

import infinity_models as models
import pytest
import torch

from i2l.i2l_core.infinity.blend import BlendSettings
from i2l.i2l_core.infinity.config import InfinityConfig
from i2l.i2l_core.infinity.files import transformer_weights
from i2l.i2l_core.infinity.memory import CONTENT, STYLED, Extent, Memory, Scratch
from i2l.i2l_core.infinity.paths import Drawing, Sampling, Styling, draw, memory_nbytes, run_nbytes
from i2l.i2l_core.infinity.scales import Scales, scales_of
from i2l.i2l_core.infinity.transformer import Infinity

ROOT = Path(__file__).resolve().parent.parent
SCALES = Scales(((1, 1), (2, 2), (4, 4), (12, 12), (24, 24)), (24, 24))
STYLES = {
    "plain": None,
    "blend alone": Styling(torch.zeros(1, 8, 24, 24), BlendSettings()),
    "structure": Styling(torch.zeros(1, 8, 24, 24), BlendSettings(), (4, 5)),
    "structure, ending": Styling(torch.zeros(1, 8, 24, 24), BlendSettings(), (4, 4)),
    "own draws": Styling(torch.zeros(1, 8, 24, 24), BlendSettings(), (4, 5), shared=False),
}


@pytest.fixture
def peak_bytes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench._measure").peak_bytes


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
@pytest.mark.parametrize("name", STYLES)
def test_a_run_has_in_use_what_the_formula_says(peak_bytes, name):
    style = STYLES[name]
    model = Infinity(models.config(width=128, depth=6))
    model.load_state_dict(transformer_weights(models.released_weights(width=128, depth=6)))
    what, how = Drawing(SCALES, [models.numbers("text", 1, 7, models.TEXT)]), Sampling()

    def action() -> None:
        for _ in draw(model, what, how, style):
            pass

    found = peak_bytes(action, torch.device("cpu"))
    assert found == pytest.approx(run_nbytes(model.config, what, how, style, 4), rel=0.05)


@pytest.mark.parametrize(
    ("config", "scales", "styled", "gibibytes"),
    [
        (InfinityConfig(2048, 32, 16, 32, 2048, 512, 15, 16, 8192), scales_of(1.0, "1M"), False, 3.22),
        (InfinityConfig(2048, 32, 16, 32, 2048, 512, 15, 16, 8192), scales_of(1.0, "1M"), True, 4.83),
        (InfinityConfig(3584, 40, 28, 56, 2048, 512, 15, 16, 14336, True), scales_of(1.0, "1M"), True, 10.5),
    ],
)
def test_released_models_with_guidance_in_bfloat16(config, scales, styled, gibibytes):
    style = Styling(None, BlendSettings(), (4, 13)) if styled else None
    assert memory_nbytes(config, scales, 1, style, True) / 2**30 == pytest.approx(gibibytes, abs=0.01)


def test_two_billion_weights_and_a_styled_run_of_a_megapixel_fit_into_ten_gigabytes():
    config = InfinityConfig(2048, 32, 16, 32, 2048, 512, 15, 16, 8192)
    what = Drawing(scales_of(1.0, "1M"), [torch.zeros(1, 20, 2048)])
    weights = 2 * sum(p.numel() for p in Infinity(config, device="meta").parameters())
    used = run_nbytes(config, what, Sampling(), Styling(None, BlendSettings(), (4, 13)))
    assert weights / 2**30 == pytest.approx(4.1, abs=0.1)
    assert (weights + used) / 2**30 < 9.6


def test_memory_gives_back_what_it_was_given_and_keeps_no_last_scale():
    config = models.config()
    extent = Extent(SCALES, 2, (4, 5), False)
    memory = Memory(config, extent, Scratch())
    given: list[torch.Tensor] = []
    for index, count in enumerate(SCALES.counts):
        paths = (CONTENT, STYLED) if index < 4 else (STYLED,)
        new = [torch.randn(2, 2, count, 32) for _ in paths]
        given.append(new[-1])
        seen = memory.extended(1, index, paths, new, [-x for x in new])
        assert torch.equal(seen[-1][0], torch.cat(given, 2))
        assert torch.equal(seen[-1][1], -torch.cat(given, 2))
    assert memory._keys[1][STYLED].shape[2] == sum(SCALES.counts[:-1])
