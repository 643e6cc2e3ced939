"""The transformer and the loop over scales, against numbers of the reference implementation.

tests/data/infinity_fixtures.safetensors holds what FoundationVision/Infinity at 4c27bbb computed on a CPU in float32
for the weights of infinity_models.py: for each case all bits drawn, the logits of the first 16 tokens of every scale
and the sum of all logits of every scale. Seed 5, temperature 0.7, top_p 0.97.
Beside them a case in bfloat16, and what its picture coder computed (test_core_infinity_files.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import infinity_models as models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from i2l.i2l_core.infinity.files import transformer_weights
from i2l.i2l_core.infinity.paths import Drawing, PerScale, Sampling, draw
from i2l.i2l_core.infinity.scales import scales_of
from i2l.i2l_core.infinity.transformer import Infinity

FIXTURES = Path(__file__).parent / "data" / "infinity_fixtures.safetensors"


@dataclass(frozen=True)
class Case:
    ratio: float = 1.0
    size: str = "0.06M"
    guidance: PerScale = 3.0
    patchify: bool = False
    negative: bool = False
    guided_block: int | None = None
    depth: int = 4


CASES = {
    "square": Case(),
    "3x2": Case(1.5),
    "4x7": Case(0.571),
    "3x1": Case(3.0),
    "patchify": Case(1.333, patchify=True),
    "negative": Case(negative=True),
    "layer": Case(guided_block=2),
    "cfg1": Case(guidance=1.0),
    "cfgs": Case(guidance=(3.0, 3.0, 2.0, 2.0, 1.0, 3.0, 1.0)),
    "512": Case(2.0, "0.25M", depth=2),
}


def model_of(case: Case, ops: Any = torch.nn) -> Infinity:
    token_bits = 32 if case.patchify else 8
    model = Infinity(models.config(token_bits, case.patchify, depth=case.depth), ops)
    model.load_state_dict(transformer_weights(models.released_weights(token_bits, depth=case.depth)))
    return model


class Casting:
    """Layers with float32 weights that compute in the type of what comes in, as the host's do."""

    Embedding, LayerNorm = torch.nn.Embedding, torch.nn.LayerNorm

    class Linear(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            bias = None if self.bias is None else self.bias.to(input)
            return torch.nn.functional.linear(input, self.weight.to(input), bias)


def fixture(name: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Bits of each scale (1, n, bits), the first logits of all scales, sums of all logits."""
    case = CASES[name]
    found = load_file(FIXTURES)
    counts = scales_of(case.ratio, case.size).counts
    width = 32 if case.patchify else 8
    bits = np.unpackbits(found[f"{name}.bits"].numpy())[: sum(counts) * width]
    split = torch.from_numpy(bits).view(1, -1, width).split(counts, 1)
    return list(split), found[f"{name}.logits"], found[f"{name}.sums"]


def drawing(case: Case) -> tuple[Drawing, Sampling]:
    negatives = [models.numbers("negative", 1, 11, models.TEXT)] if case.negative else None
    texts = [models.numbers("text", 1, 7, models.TEXT)]
    sampling = Sampling(5, case.guidance, 0.7, 0.97, case.guided_block)
    return Drawing(scales_of(case.ratio, case.size), texts, negatives), sampling


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_reference(name: str) -> None:
    bits, first, sums = fixture(name)
    what, sampling = drawing(CASES[name])
    steps = list(draw(model_of(CASES[name]), replace(what, kept=bits), sampling))
    found = torch.cat([step.logits[0, :16] for step in steps])
    reach = first.abs().max()
    assert 0.3 < reach < 50
    torch.testing.assert_close(found, first, atol=float(1e-4 * reach), rtol=0)
    counts = torch.tensor([step.logits.numel() for step in steps])
    ours = torch.stack([step.logits.double().sum() for step in steps])
    torch.testing.assert_close(ours / counts, sums.double() / counts, atol=float(1e-5 * reach), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_draws_the_bits_of_the_reference(name: str) -> None:
    bits, _, _ = fixture(name)
    what, sampling = drawing(CASES[name])
    for step, expected in zip(draw(model_of(CASES[name]), what, sampling), bits, strict=True):
        assert torch.equal(step.bits, expected > 0), f"scale {step.index + 1}"


def test_bfloat16_rounds_where_the_reference_rounds() -> None:
    """The reference under autocast to bfloat16 on a CPU, with q and k normalised in float32 as on other devices.
    Kernels round sums in their own ways; what is in float32 or rounded twice would show as much as float32 does."""
    case = CASES["square"]
    found = load_file(FIXTURES)
    counts = scales_of(case.ratio, case.size).counts
    bits = np.unpackbits(found["bfloat16.bits"].numpy())[: sum(counts) * 8]
    kept = list(torch.from_numpy(bits).view(1, -1, 8).split(counts, 1))
    expected = found["bfloat16.logits"]
    what, sampling = drawing(case)

    def difference(dtype: torch.dtype) -> Tensor:
        steps = draw(model_of(case, Casting), replace(what, kept=kept), sampling, dtype=dtype)
        return (torch.cat([step.logits[0, :16] for step in steps]) - expected).abs()

    ours, in_float32 = difference(torch.bfloat16), difference(torch.float32)
    assert float(ours.max()) < 2e-2 * float(expected.abs().max())
    assert float(ours.mean()) < float(in_float32.mean()) / 4
