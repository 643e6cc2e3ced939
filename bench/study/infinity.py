"""Infinity on the demo world: the tables and figures of arXiv 2507.04482, where every factor is known.

One held-out style and one held-out content a row, one reference. Every condition draws with the same random numbers.
`agreement`: share of the pictures in which the judge reads the subject, count and place of the unstyled picture;
`outline`: how far the outlines agree with the unstyled picture's (structure.py). Beside them the predicted LoRA and
img2img of the demo's diffusion model, on the same styles.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from i2l_core.demo import files
from i2l_core.demo.content import PARTS, SUBJECTS, contents
from i2l_core.demo.infinity import SCALES
from i2l_core.demo.judge import Verdict, style_distance, style_parts
from i2l_core.demo.prompts import content_prompt, style_prompt
from i2l_core.demo.sampler import Sampling as Diffusion
from i2l_core.demo.style import HUE_CENTRES, HUE_NAMES, Style
from i2l_core.infinity.bits import features
from i2l_core.infinity.blend import REPLACE, TOP, BlendSettings, style_part
from i2l_core.infinity.paths import Drawing, Sampling, Styling, draw, feature_of_words

from .._world import Bench, Case, predict
from .structure import agreement as outline_agreement

ALPHAS = (0.2, 0.6, 1.0, 2.0, 5.0)
STRENGTHS = (0.25, 0.5, 0.75, 1.25, 1.5)
COMPONENTS = (1, 2, 4, 8, 16, 32)
STEPS = (1, 2, 3, 4, 5, 6)
_SCALES = len(SCALES.maps)
_KEPT = (4, _SCALES)  # scales at which the structure is kept
_STRUCTURE_ENDS = (4, 5, 6)
_PAIRS = 100
_SET = 8  # contents in one style from words
_ROWS = 64  # pictures drawn together
_SEED = 11
_SAMPLING = Sampling(guidance=3.0, temperature=0.5)

PFB = BlendSettings()
REP = BlendSettings(REPLACE)


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Figures of all parts; differences with their intervals."""
    world = World(bench)
    return {
        "ablation": world.ablation(),
        "anchors": _anchors(bench, steps),
        "alpha": world.blends({f"{a:g}": BlendSettings(alpha=a) for a in ALPHAS}),
        "strength": world.blends({f"{s:g}": BlendSettings(strength=s) for s in STRENGTHS}),
        "top_k": world.blends({str(k): BlendSettings(TOP, k=k) for k in COMPONENTS}),
        "step": world.blends({str(s): BlendSettings(step=s) for s in STEPS}),
        "key_step": key_step(world),
        "key_feature": key_feature(world),
        "words": words(world),
        "ours": world.ours(),
    }


class World:
    """The demo world's Infinity on a bench's styles."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.network = files.load_infinity().requires_grad_(False)
        self.coder = files.load_infinity_vae().requires_grad_(False)
        self.latents = self.encode(bench.references.flatten(0, 1)).unflatten(0, bench.references.shape[:2])
        self.styles: Sequence[Style] = bench.pool.styles
        self.texts = bench.words
        self.named = bench.texts(
            [
                f"{content_prompt(c)}, {style_prompt(s)}"
                for c, s in zip(bench.targets, self.styles, strict=True)
            ]
        )
        self.none = self.paint("none")

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in 0..1 -> latents."""
        return torch.cat([self.coder.encode(part * 2 - 1) for part in pictures.split(_ROWS)])

    def sums(self, step: int, references: int = 1) -> list[Tensor]:
        """F_step of the first references of each style, (S, d, H, W) each."""
        return [features(self.latents[:, i], SCALES, False).sums[step - 1] for i in range(references)]

    def pictures(
        self,
        texts: Tensor | Sequence[Tensor],
        settings: BlendSettings | None = None,
        part: Tensor | None = None,
        structure: tuple[int, int] | None = None,
        shared: bool = True,
        sampling: Sampling = _SAMPLING,
        kept: Sequence[Tensor] = (),
    ) -> Tensor:
        """(N, 3, H, W) in 0..1. `texts`: (N, L, W), or one of them for each scale."""
        each = [texts] if isinstance(texts, Tensor) else list(texts)
        out = []
        for first in range(0, len(each[0]), _ROWS):
            some = slice(first, first + _ROWS)
            block = [t[some] for t in each]
            drawing = Drawing(SCALES, block, rows=len(block[0]), kept=[k[some] for k in kept])
            styling = None
            if settings is not None or structure is not None:
                styling = Styling(None if part is None else part[some], settings or PFB, structure, shared)
            seeded = replace(sampling, seed=_SEED + first)
            for step in draw(self.network, drawing, seeded, styling):
                last = step
            latent = last.content if styling is None else last.styled
            assert latent is not None
            out.append((self.coder.decode(latent) + 1) / 2)
        return torch.cat(out)

    def paint(
        self, name: str, settings: BlendSettings | None = None, references: int = 1, **how: Any
    ) -> Case:
        """Each content in its style's way, judged."""
        started = time.time()
        if settings is not None and "part" not in how:
            sums = self.sums(settings.step, references)
            how["part"] = style_part(sums, [1.0] * references, settings)
        texts = how.pop("texts", self.texts)
        case = self.bench.judge(self.pictures(texts, settings, **how))
        sys.stderr.write(f"{name}: {case.figures()}  {time.time() - started:.0f} s\n")
        return case

    def figures(self, case: Case, against: Case | None = None) -> dict[str, Any]:
        """Of a condition; its changes from the unstyled pictures, or from another condition."""
        near, accuracy = 1 - case.style_distance.mean(), case.right.float().mean()
        both = 2 * near * accuracy / (near + accuracy)
        return {
            **case.figures(),
            "harmonic": round(float(both), 4),
            "agreement": round(float(case.same_content(self.none).mean()), 4),
            "outline": round(float(self._outline(case).mean()), 4),
            "by_factor": {name: round(float(d.mean()), 4) for name, d in self.bench.factors(case).items()},
            "leakage": self._leakage(case),
            "change": self._over(case, against or self.none),
        }

    def ablation(self) -> dict[str, Any]:
        """The paper's Table 2, without and with words for the style in the prompt."""
        found: dict[str, Any] = {}
        for title, texts in (("content", self.texts), ("content and style words", self.named)):
            cases = {
                "none": self.none if texts is self.texts else self.paint("words", texts=texts),
                "REP": self.paint(f"REP, {title}", REP, texts=texts),
                "PFB": self.paint(f"PFB, {title}", PFB, texts=texts),
                "PFB + SAC": self.paint(f"PFB + SAC, {title}", PFB, texts=texts, structure=_KEPT),
            }
            found[title] = {name: self.figures(case, cases["none"]) for name, case in cases.items()}
            found[title]["REP over PFB"] = self._over(cases["REP"], cases["PFB"])
            found[title]["SAC over PFB"] = self._over(cases["PFB + SAC"], cases["PFB"])
        return found

    def blends(self, settings: dict[str, BlendSettings]) -> dict[str, Any]:
        """One figure each of several ways to blend, all with the structure kept from the next scale on."""
        found = {}
        for name, one in settings.items():
            structure = (one.step + 1, _SCALES) if one.step < _SCALES else None
            found[name] = self.figures(self.paint(f"{one}", one, structure=structure))
        return found

    def ours(self) -> dict[str, Any]:
        """What the pack offers beside the paper."""
        guided = [3.0] * (_SCALES - 1) + [1.0]
        bits = features(self.encode(self.bench.real), SCALES, False).bits
        cases = {
            "own draws": self.paint("own draws", PFB, structure=_KEPT, shared=False),
            "cfg 1 on the last scale": self.paint(
                "cfg", PFB, structure=_KEPT, sampling=replace(_SAMPLING, guidance=guided)
            ),
            **{
                f"structure ends after scale {end}": self.paint(f"end {end}", PFB, structure=(4, end))
                for end in _STRUCTURE_ENDS
            },
            **{
                f"{n} references": self.paint(f"{n} references", PFB, n, structure=_KEPT)
                for n in (2, 4)
                if n <= self.bench.n_references
            },
        }
        found = {name: self.figures(case) for name, case in cases.items()}
        # A given picture, of another style: the next one's, which shows this style's content
        other = [b.roll(1, 0) for b in bits]
        asked = [self.bench.targets[i - 1] for i in range(len(self.bench.targets))]
        restyled = self.paint("a given picture", PFB, structure=_KEPT, kept=other, texts=self.bench.texts(
            [content_prompt(c) for c in asked]
        ))  # fmt: skip
        again = self.bench.judge(restyled.pictures, asked)
        found["a given picture in the style"] = again.figures()
        kept = self.bench.judge(self.bench.real.roll(1, 0), asked)
        found["the given picture"] = kept.figures()
        return found

    def _over(self, case: Case, base: Case) -> dict[str, Any]:
        paired = self.bench.paired
        return {
            "style_distance": paired(case.style_distance, base.style_distance),
            "prompt_accuracy": paired(case.right.float().mean(1), base.right.float().mean(1)),
            "agreement": paired(case.same_content(self.none), base.same_content(self.none)),
            "outline": paired(self._outline(case), self._outline(base)),
        }

    def _outline(self, case: Case) -> Tensor:
        return outline_agreement(case.pictures, self.none.pictures)

    def _leakage(self, case: Case) -> dict[str, float]:
        """Points above chance that the picture shows the reference's subject, count or place where the prompt says
        another one; chance is the same share for the reference of another row."""
        found = {}
        shown = [row[0] for row in self.bench.pool.contents]
        for name in PARTS:
            seen = getattr(case.verdict, name).argmax(1).cpu()
            reference = torch.tensor([getattr(c, name) for c in shown])
            asked = torch.tensor([getattr(c, name) for c in self.bench.targets])
            rates = []
            for shift in range(min(len(reference), 64)):
                dealt = reference.roll(shift)
                rates.append(float((seen == dealt)[dealt != asked].float().mean()))
            found[name] = round(100 * (rates[0] - sum(rates[1:]) / max(len(rates) - 1, 1)), 2)
        return found


def key_step(world: World) -> dict[str, Any]:
    """Fig. 2: the other prompt at one scale alone. Share of the pictures with the other subject, and with a figure hue
    nearer to the other one's name."""
    found: dict[str, Any] = {}
    for kind in ("subject", "hue"):
        first, second = _pairs(kind == "subject", kind == "hue")
        a, b = (world.bench.texts([asked.prompt for asked in side]) for side in (first, second))
        row = {}
        for scale in range(_SCALES + 1):  # 0: nowhere
            texts = [b if index + 1 == scale else a for index in range(_SCALES)]
            verdict = world.bench.read(world.pictures(texts))
            row[str(scale)] = round(float(_is_second(kind, verdict, first, second).float().mean()), 4)
        found[kind] = row
    return found


def key_feature(world: World) -> dict[str, Any]:
    """Fig. 3: two prompts that differ in subject and hue. What of the second comes with its feature after scale 3, and
    what with the first component of it."""
    first, second = _pairs(subject=True, hue=True)
    a, b = (world.bench.texts([asked.prompt for asked in side]) for side in (first, second))
    source = torch.cat([
        feature_of_words(
            world.network, Drawing(SCALES, [part], rows=len(part)), replace(_SAMPLING, seed=_SEED + 1000 + i), 3
        )
        for i, part in enumerate(b.split(_ROWS))
    ])  # fmt: skip
    found = {}
    for name, settings in {
        "nothing": None,
        "its feature": REP,
        "its first component": BlendSettings(TOP, k=1),
        "its first four": BlendSettings(TOP, k=4),
        "by weight": PFB,
    }.items():
        part = None if settings is None else style_part([source], [1.0], settings)
        verdict = world.bench.read(world.pictures(a, settings, part))
        found[name] = {
            kind: round(float(_is_second(kind, verdict, first, second).float().mean()), 4)
            for kind in ("subject", "hue")
        }
    return found


def words(world: World) -> dict[str, Any]:
    """Fig. 14: sets of pictures in a style from words: how far they are from each other, and what they show."""
    chosen = contents(True)[:_SET]
    styles = world.styles[: max(1, min(24, len(world.styles)))]
    prompts = [f"{content_prompt(c)}, {style_prompt(s)}" for s in styles for c in chosen]
    texts = world.bench.texts(prompts)
    asked = [c for _ in styles for c in chosen]
    only = world.bench.texts([style_prompt(s) for s in styles])
    found = {}
    for name, settings, structure in (
        ("none", None, None),
        ("REP", REP, None),
        ("PFB", PFB, None),
        ("PFB + SAC", PFB, _KEPT),
    ):
        part = None
        if settings is not None:
            drawing = Drawing(SCALES, [only], rows=len(only))
            feature = feature_of_words(world.network, drawing, replace(_SAMPLING, seed=_SEED + 2000), 3)
            part = style_part([feature], [1.0], settings).repeat_interleave(_SET, 0)
        verdict = world.bench.read(world.pictures(texts, settings, part, structure))
        right = torch.stack(
            [getattr(verdict, f).argmax(1) == torch.tensor([getattr(c, f) for c in asked]) for f in PARTS], 1
        )
        apart = []
        for shift in range(1, _SET):
            index = torch.arange(len(asked)).view(-1, _SET).roll(shift, 1).flatten()
            apart.append(style_distance(verdict, _taken(verdict, index)))
        found[name] = {
            "distance_within_a_set": round(float(torch.stack(apart).mean()), 4),
            "prompt_accuracy": round(float(right.float().mean()), 4),
        }
    return found


def _anchors(bench: Bench, steps: int) -> dict[str, Any]:
    """The demo's diffusion model on the same styles."""
    sampling = Diffusion(steps)
    lora = predict(bench.references[:, :1])
    start = bench.encoder(bench.references[:, 0])
    part = Diffusion(max(1, round(steps * 0.75)), sampling.cfg, 0.75)
    cases = {
        "none": bench.paint("diffusion, none", sampling, None, None),
        "predicted LoRA": bench.paint("diffusion, predicted LoRA", sampling, lora, lora),
        "img2img, denoise 0.75": bench.paint("diffusion, img2img", part, None, None, start),
    }
    return {name: case.figures() for name, case in cases.items()}


def _taken(verdict: Verdict, index: Tensor) -> Verdict:
    return Verdict(*(getattr(verdict, f)[index] for f in Verdict.__dataclass_fields__))


@dataclass(frozen=True)
class Asked:
    """A prompt, and what it says of subject and of the figure's hue: indices."""

    prompt: str
    subject: int
    hue: int = 0


def _pairs(subject: bool, hue: bool) -> tuple[list[Asked], list[Asked]]:
    """Pairs of prompts that differ in the subject, in the named hue of the figure, or in both."""
    generator = torch.Generator().manual_seed(_SEED)

    def any_of(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    pool = contents(None)
    first: list[Asked] = []
    second: list[Asked] = []
    while len(first) < _PAIRS:
        a, other, hues = (
            pool[any_of(len(pool))],
            any_of(len(SUBJECTS)),
            [any_of(len(HUE_NAMES)) for _ in range(3)],
        )
        if len(set(hues)) < 3 or other == a.subject:
            continue
        b = replace(a, subject=other) if subject else a
        for content, own, out in ((a, hues[0], first), (b, hues[1], second)):
            colours = f", poster, {HUE_NAMES[own]} on {HUE_NAMES[hues[2]]}" if hue else ""
            out.append(Asked(content_prompt(content) + colours, content.subject, own))
    return first, second


def _is_second(kind: str, verdict: Verdict, first: list[Asked], second: list[Asked]) -> Tensor:
    """(N,) bool: nearer to the second prompt than to the first."""
    if kind == "subject":
        a, b = (torch.tensor([asked.subject for asked in side])[:, None] for side in (first, second))
        return (verdict.subject.gather(1, b) > verdict.subject.gather(1, a))[:, 0]
    circle = style_parts(verdict)["figure hue"]
    turns = 2 * torch.pi * torch.tensor(HUE_CENTRES)
    points = torch.stack([turns.cos(), turns.sin()], 1)
    a, b = (points[[asked.hue for asked in side]] for side in (first, second))
    return (circle * b).sum(1) > (circle * a).sum(1)
