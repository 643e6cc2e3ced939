"""Style Tone Blend on the demo world: what it brings alone and beside a LoRA, and what is simpler or older.

The rivals change the same denoised latents at the same steps: mean colour (a grid of one cell), AdaIN (mean and
standard deviation of each channel, arXiv 1703.06868) and whitening and colouring (mean and covariance, arXiv
1705.08086). All take the first reference, and so does the predictor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from i2l_core.demo.sampler import Sampling, shifted
from i2l_core.tone_blend import ToneSettings, blend_tone, tone_of

from .._world import After, Bench, Case, LoRAs, predict

_GRIDS, _ALPHAS, _ENDS = (2, 4, 8), (0.2, 1.0, 5.0), (0.25, 0.5, 1.0)
_STRENGTHS = (0.5, 1.5)  # beside 1
_LORAS = (0.0, 0.5, 1.0)
_END = 0.5  # the node's own
_EPS = 1e-5

Transfer = Callable[
    [Tensor, Tensor], Tensor
]  # denoised (B, C, H, W), latents of references, alike -> denoised


@dataclass(frozen=True)
class Way:
    """One setting: a tone blend, or a rival by name."""

    name: str
    end: float
    settings: ToneSettings | None = None  # None: a rival

    @property
    def title(self) -> str:
        if self.settings is None:
            return f"{self.name}, 0-{self.end:g}"
        s = self.settings
        cells = f", grid {s.grid}, alpha {s.alpha:g}" if s.grid > 1 else ""  # one cell has one component
        return f"{self.name}{cells}, strength {s.strength:g}, 0-{self.end:g}"


def ways() -> Iterator[Way]:
    """Every grid with every alpha and window at strength 1; the other strengths at alpha 1 in the node's window."""
    for end in _ENDS:
        yield Way("mean colour", end, ToneSettings(grid=1))
        for grid in _GRIDS:
            for alpha in _ALPHAS:
                yield Way("tone", end, ToneSettings(1.0, grid, alpha))
        for name in RIVALS:
            yield Way(name, end)
    for strength in _STRENGTHS:
        for grid in (1, *_GRIDS):
            yield Way("mean colour" if grid == 1 else "tone", _END, ToneSettings(strength, grid))


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Per strength of the LoRA: each way, with its changes from the same LoRA without it, paired over styles."""
    sampling = Sampling(steps)
    references = bench.encoder(bench.references[:, 0])
    style = predict(bench.references[:, :1])
    found: dict[str, Any] = {}
    for strength in _LORAS:
        lora = {k: (down, up * strength) for k, (down, up) in style.items()} if strength else None
        plain = bench.paint(f"lora {strength:g}", sampling, lora, lora)
        cases = {"nothing more": _figures(bench, plain, plain)}
        for way in ways():
            case = _painted(bench, sampling, lora, way, references, f"lora {strength:g}, {way.title}")
            cases[way.title] = _figures(bench, case, plain)
        found[f"{strength:g}"] = cases
    return {"lora": found}


def _painted(
    bench: Bench, sampling: Sampling, lora: LoRAs | None, way: Way, references: Tensor, title: str
) -> Case:
    return bench.paint(title, sampling, lora, lora, after=after(way, references, bench.n_prompts))


def after(way: Way, references: Tensor, prompts: int) -> After:
    """What changes the denoised latents; `references`: latents (S, C, h, w), one per style."""
    last = float(shifted(torch.tensor(1 - way.end)))  # the host's percent_to_sigma
    if way.settings is None:
        return _within(last, lambda chosen, x0: RIVALS[way.name](x0, _each(references[chosen], prompts)))
    settings = way.settings
    tones = torch.cat([tone_of([one[None]], [1.0], settings) for one in references])
    return _within(last, lambda chosen, x0: blend_tone(x0, _each(tones[chosen], prompts), settings))


def _within(last: float, change: Callable[[Tensor, Tensor], Tensor]) -> After:
    def changed(chosen: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        return change(chosen, x0) if float(sigma) >= last else x0

    return changed


def _each(per_style: Tensor, prompts: int) -> Tensor:
    return per_style.repeat_interleave(prompts, 0)


def adain(x0: Tensor, reference: Tensor) -> Tensor:
    """Mean and standard deviation of each channel as in the reference."""
    a, b = x0.flatten(2), reference.flatten(2)
    scale = (b.std(-1, keepdim=True) + _EPS) / (a.std(-1, keepdim=True) + _EPS)
    return ((a - a.mean(-1, keepdim=True)) * scale + b.mean(-1, keepdim=True)).view_as(x0)


def whitened(x0: Tensor, reference: Tensor) -> Tensor:
    """Mean and covariance of the channels as in the reference: C_b^(1/2) C_a^(-1/2) (x - mean) + mean."""
    a, b = x0.double().flatten(2), reference.double().flatten(2)
    mean_a, mean_b = a.mean(-1, keepdim=True), b.mean(-1, keepdim=True)
    change = _root(_covariance(b - mean_b), 0.5) @ _root(_covariance(a - mean_a), -0.5)
    return (change @ (a - mean_a) + mean_b).view_as(x0).to(x0)


def _covariance(centred: Tensor) -> Tensor:
    return centred @ centred.mT / (centred.shape[-1] - 1)


def _root(matrices: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp(min=_EPS).pow(power).unsqueeze(-2)) @ vectors.mT


RIVALS: dict[str, Transfer] = {"AdaIN": adain, "whitening and colouring": whitened}


def _figures(bench: Bench, case: Case, plain: Case) -> dict[str, Any]:
    right, right_plain = (c.right.all(1).float() for c in (case, plain))
    nothing = torch.zeros_like(right)
    return {
        **case.figures(),
        "style_distance_interval_95": bench.paired(case.style_distance, nothing)["interval_95"],
        "style_distance_change": bench.paired(case.style_distance, plain.style_distance),
        "all_right_interval_95": bench.paired(right, nothing)["interval_95"],
        "all_right_change": bench.paired(right, right_plain),
        "by_factor": {name: round(float(d.mean()), 4) for name, d in bench.factors(case).items()},
    }
