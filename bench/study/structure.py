"""A stronger style without the composition moving: which way there costs least, on the demo world.

Each way is a point: style distance against prompts all right and agreement of its outlines with the picture of the same
noise without a LoRA. Ways: the predicted LoRA weaker and stronger; without its q and k rows, which is free; starting
late; asymmetric guidance; and Keep Structure (arXiv 2507.04482, 4.3, carried over): beside each picture runs one
without LoRA, and for some steps and layers the image tokens' q and k in its attention take the place of the styled
one's.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2l_core.demo.backbone import Attention, Backbone, LayerPair
from i2l_core.demo.sampler import Sampling, shifted
from i2l_core.mixing.block_weights import BlockWeights
from i2l_core.references import GRAY

from .._world import Bench, Case, LoRAs, predict, repeated, rows_of
from ..where import limit

ALL, FIRST, LAST = "all", "first half", "last half"
_STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.25, 1.5)
_STARTS = (0.125, 0.25, 0.5)
_STRONG = (1.0, 1.5)  # of LoRAs that start late
_ASYMMETRIC = (0.6, 0.8, 1.0)
_WINDOWS = (1 / 6, 1 / 3, 1 / 2, 1.0)
_KEPT = (0.7, 1.0, 1.5)  # under Keep Structure in all layers
_EDGES = 0.1  # of the pixels: those with the largest gradients
_NEAR = 2  # pixels between outlines that still agree
_FREE = "without q and k"


@dataclass(frozen=True)
class Keep:
    """Keep Structure in the first `end` of the steps, in these layers with image tokens."""

    end: float
    layers: str = ALL


@dataclass(frozen=True)
class Way:
    """How a LoRA of this strength is used; `start`: share of the sampling before it begins."""

    strength: float
    without_qk: bool = False
    start: float = 0.0
    asymmetric: bool = False
    keep: Keep | None = None

    @property
    def title(self) -> str:
        parts = [_FREE if self.without_qk else "LoRA", f"strength {self.strength:g}"]
        parts += [f"from {self.start:g}"] if self.start else []
        parts += ["asymmetric"] if self.asymmetric else []
        parts += [f"kept 0-{self.keep.end:.3g}, {self.keep.layers}"] if self.keep else []
        return ", ".join(parts)


def ways() -> Iterator[Way]:
    for without in (False, True):
        yield from (Way(s, without) for s in _STRENGTHS)
        yield from (Way(s, without, asymmetric=True) for s in _ASYMMETRIC)
    yield from (Way(s, start=start) for start in _STARTS for s in _STRONG)
    for end in _WINDOWS:
        yield from (Way(s, keep=Keep(end)) for s in _KEPT)
        yield from (Way(1.0, keep=Keep(end, layers)) for layers in (FIRST, LAST))
        yield Way(1.0, asymmetric=True, keep=Keep(end))


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Figures of each way; changes are from the free rival whose style distance is nearest, paired over styles.

    That rival has no q and k rows, and the way's kind of guidance. `beaten_by`: ways without Keep Structure that are as
    good or better in style distance, prompts all right and outlines, and better in one; for the front.
    """
    world = _World(bench, steps)
    plain = world.paint(None)
    cases, outlines = {}, {}
    for way in ways():
        case = world.paint(way)
        outlines[way] = agreement(case.pictures, plain.pictures)
        cases[way] = replace(case, pictures=case.pictures[:0])  # all of them would take gigabytes
    points = {way: _point(case, outlines[way]) for way, case in cases.items()}
    found = {"none": _figures(bench, plain, plain, agreement(plain.pictures, plain.pictures))}
    for way, case in cases.items():
        rival = _nearest(way, points)
        right, right_rival = (c.right.all(1).float() for c in (case, cases[rival]))
        found[way.title] = {
            **_figures(bench, case, plain, outlines[way]),
            "rival": rival.title,
            "style_distance_change": bench.paired(case.style_distance, cases[rival].style_distance),
            "all_right_change": bench.paired(right, right_rival),
            "outline_change": bench.paired(outlines[way], outlines[rival]),
            "beaten_by": [o.title for o, p in points.items() if o.keep is None and _beats(p, points[way])],
        }
    other = plain.pictures.roll(1, 0)
    return {
        "cases": found,
        "outline_of_another_picture": round(float(agreement(other, plain.pictures).mean()), 4),
    }


Point = tuple[float, float, float]  # style distance, less than 0; all right; outlines: more is better


def _point(case: Case, outline: Tensor) -> Point:
    return -float(case.style_distance.mean()), float(case.right.all(1).float().mean()), float(outline.mean())


def _beats(a: Point, b: Point) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def _nearest(way: Way, points: Mapping[Way, Point]) -> Way:
    """The free rival nearest in style distance."""
    rivals = [other for other in points if other.without_qk and other.asymmetric == way.asymmetric]
    return min(rivals, key=lambda other: abs(points[other][0] - points[way][0]))


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Of the outlines of pictures (N, 3, H, W), (N,): the share of edges near one of the other, both ways."""
    edges = [_edges(p) for p in (a, b)]
    near = [F.max_pool2d(e, 2 * _NEAR + 1, 1, _NEAR) for e in edges]
    shares = [(edges[i] * near[1 - i]).sum((1, 2, 3)) / edges[i].sum((1, 2, 3)).clamp(min=1) for i in (0, 1)]
    return ((shares[0] + shares[1]) / 2).cpu()


def _edges(pictures: Tensor) -> Tensor:
    """(N, 1, H, W) of 0 and 1: where the colour changes most. Colours do not count, only how far they are apart."""
    smooth = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    across = F.pad(smooth[..., 2:] - smooth[..., :-2], (1, 1))
    down = F.pad(smooth[..., 2:, :] - smooth[..., :-2, :], (0, 0, 1, 1))
    size = (across.square() + down.square()).sum(1, keepdim=True)
    bound = size.flatten(1).quantile(1 - _EDGES, dim=1).view(-1, 1, 1, 1)
    return (size > bound).float()


def _figures(bench: Bench, case: Case, plain: Case, outline: Tensor) -> dict[str, Any]:
    right, nothing = case.right.all(1).float(), torch.zeros(len(outline))
    return {
        **case.figures(),
        "outline": round(float(outline.mean()), 4),
        "content_as_unstyled": round(float(case.same_content(plain).mean()), 4),
        "style_distance_interval_95": bench.paired(case.style_distance, nothing)["interval_95"],
        "all_right_interval_95": bench.paired(right, nothing)["interval_95"],
        "outline_interval_95": bench.paired(outline, nothing)["interval_95"],
        "by_factor": {name: round(float(d.mean()), 4) for name, d in bench.factors(case).items()},
    }


class _World:
    """A bench's styles with their predicted LoRAs."""

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.sampling = bench, Sampling(steps)
        self.style = predict(bench.references)
        self.gray = repeated(predict(torch.full_like(bench.references[:1], GRAY)), bench.styles)
        self.keeping = {layers: Keeping(bench.backbone, layers) for layers in (ALL, FIRST, LAST)}

    def paint(self, way: Way | None) -> Case:
        if way is None:
            return self.bench.paint("none", self.sampling, None, None)
        positive, negative = (
            self._used(loras, way) for loras in (self.style, self.gray if way.asymmetric else self.style)
        )
        keeping = self.keeping[way.keep.layers] if way.keep else None

        def draw(chosen: Tensor, noise: Tensor, yes: Tensor, no: Tensor) -> Tensor:
            sides = cast(
                "list[dict[str, LayerPair]]", [rows_of(side, chosen) for side in (positive, negative)]
            )
            return styled(
                self.bench.network, keeping, noise, (yes, no), self.sampling, (sides[0], sides[1]), way
            )

        return self.bench.drawn(way.title, draw)

    def _used(self, loras: LoRAs, way: Way) -> LoRAs:
        used = limit(loras, BlockWeights(q=0.0, k=0.0)) if way.without_qk else loras
        return {k: (down, up * way.strength) for k, (down, up) in used.items()}


Sides = tuple[dict[str, LayerPair], dict[str, LayerPair]]


def styled(
    network: Backbone,
    keeping: Keeping | None,
    noise: Tensor,
    words: tuple[Tensor, Tensor],
    sampling: Sampling,
    loras: Sides,
    way: Way,
) -> Tensor:
    """Noise (B, C, H, W) -> latents, as `sample` does it. `words` and `loras`: of the positive and negative side."""
    x, content, sigmas = noise, noise, sampling.sigmas().to(noise.device)
    first = float(shifted(torch.tensor(1 - way.start)))  # the host's percent_to_sigma
    kept = max(1, round(way.keep.end * sampling.steps)) if way.keep and way.keep.end > 0 else 0
    for i, (now, then) in enumerate(itertools.pairwise(sigmas)):
        used = loras if float(now) <= first else ({}, {})
        if keeping is not None and i < kept:
            both = [keeping(x, content, now, w, lora) for w, lora in zip(words, used, strict=True)]
            v, v_content = (_guided(yes, no, sampling.cfg) for yes, no in zip(*both, strict=True))
            content = content + (then - now) * v_content
        else:
            level = now.expand(len(x))
            yes, no = (network(x, level, w, lora) for w, lora in zip(words, used, strict=True))
            v = _guided(yes, no, sampling.cfg)
        x = x + (then - now) * v
    return x


def _guided(yes: Tensor, no: Tensor, cfg: float) -> Tensor:
    return no + cfg * (yes - no)


class Keeping(nn.Module):
    """A backbone that draws a styled picture and one without LoRA side by side, the first with the structure of the
    second."""

    def __init__(self, backbone: Backbone, layers: str) -> None:
        super().__init__()
        self.network = copy.deepcopy(backbone)
        seeing = [
            *self.network.noise_refiner,
            *self.network.layers,
        ]  # image tokens; the context refiner has none
        half = -(-len(seeing) // 2)
        for block in {ALL: seeing, FIRST: seeing[:half], LAST: seeing[half:]}[layers]:
            part = cast(Any, block)
            part.attention = _Kept(part.attention)

    def forward(
        self, x: Tensor, content: Tensor, sigma: Tensor, context: Tensor, lora: Mapping[str, LayerPair]
    ) -> tuple[Tensor, Tensor]:
        """Velocities of the styled half, with `lora`, and of the content half, without; x and content (B, C, H, W)."""
        side = self.network.config.patch_size
        pictures = (x.shape[-2] // side) * (x.shape[-1] // side)
        for part in self.network.modules():
            if isinstance(part, _Kept):
                part.image_tokens = pictures
        both = torch.cat([x, content])
        pairs = {
            name: (torch.cat([down, down]), torch.cat([up, torch.zeros_like(up)]))
            for name, (down, up) in lora.items()
        }
        v = self.network(both, sigma.expand(len(both)), torch.cat([context, context]), pairs)
        return tuple(v.chunk(2))


class _Kept(nn.Module):
    """Attention in which the first half of a batch takes the image tokens' q and k from the second. They come last."""

    def __init__(self, inner: Attention) -> None:
        super().__init__()
        self.inner, self.image_tokens = inner, 0

    def forward(self, x: Tensor, rope: Tensor, lora: Mapping[str, LayerPair], path: str) -> Tensor:
        q, k, v = self.inner.projected(x, rope, lora, path)
        return self.inner.joined(self._exchanged(q), self._exchanged(k), v, lora, path)

    def _exchanged(self, tokens: Tensor) -> Tensor:
        styled, content = tokens.chunk(2)
        words = tokens.shape[2] - self.image_tokens
        return torch.cat([torch.cat([styled[:, :, :words], content[:, :, words:]], 2), content])
