"""Held-out styles of the demo world, painted with a LoRA each and judged: what the measurements of quality share."""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from i2l_core.demo import files
from i2l_core.demo.backbone import Backbone, LayerPair
from i2l_core.demo.content import PARTS, Content
from i2l_core.demo.judge import Verdict, style_distance, style_parts
from i2l_core.demo.pool import PoolConfig, open_pool
from i2l_core.demo.prompts import content_prompt, tokenise
from i2l_core.demo.sampler import Sampling, sample
from i2l_core.predictors.query.file import load_predictor
from i2l_core.predictors.query.network import QueryNetwork

LoRAs = Mapping[str, LayerPair]  # weight -> (down (S, k, in), up (S, out, k)), one LoRA per style
After = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # styles (S',), denoised (S' * P, C, H, W), noise level () -> denoised
Draw = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # styles, noise, words, words of the negative side -> latents

_SEED = 3
_BLOCK = 16  # styles sampled together on a CPU
_JUDGED = 64  # pictures judged together; all of a case at once would take gigabytes
_RESAMPLES = 10_000  # of the bootstrap
_FIELDS = tuple(Verdict.__dataclass_fields__)


@dataclass(frozen=True)
class Case:
    """What one condition made, style-major."""

    pictures: Tensor  # (styles * prompts, 3, H, W)
    verdict: Verdict  # of the pictures
    style_distance: Tensor  # (styles * prompts,)
    right: Tensor  # (styles * prompts, 3) subject, count, place

    def same_content(self, other: Case) -> Tensor:
        """(styles * prompts,) 1 where subject, count and place are read as in another case's pictures, else 0."""
        same = [getattr(self.verdict, f).argmax(1) == getattr(other.verdict, f).argmax(1) for f in PARTS]
        return torch.stack(same, 1).all(1).float().cpu()

    def figures(self) -> dict[str, float]:
        return {
            "style_distance": round(float(self.style_distance.mean()), 4),
            "prompt_accuracy": round(float(self.right.float().mean()), 4),
            "all_right": round(float(self.right.all(1).float().mean()), 4),
        }


class Bench:
    """`styles` held-out styles, the demo world's networks, and the judge; each loaded once.

    Of each style there are `n_references` pictures to predict from and `n_prompts` held-out contents to paint, none
    of which a reference shows. Everything is on `device`: the GPU if there is one. `compiled`: minutes to begin with
    and two thirds of the time afterwards, on a CPU.
    """

    def __init__(
        self, styles: int, talk: bool, n_references: int = 4, n_prompts: int = 2, compiled: bool = False
    ) -> None:
        self.started = time.time()
        self.styles, self.n_references, self.n_prompts = styles, n_references, n_prompts
        self._talk = talk
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = PoolConfig(styles, n_references + n_prompts, _SEED, held_out=True)
        self.pool = open_pool(Path(".runs/pool"), config)
        pictures = (
            torch.from_numpy(self.pool.pictures.copy()).permute(0, 1, 4, 2, 3).to(self.device).float() / 255
        )
        self.references = pictures[:, :n_references]  # (S, N, 3, H, W)
        self.real = pictures[:, n_references:].flatten(0, 1)
        self.targets = [content for row in self.pool.contents for content in row[n_references:]]
        self.backbone, self.text = files.load_backbone()
        self.encoder, self.decoder = files.load_vae()
        self.verdict = files.load_judge()
        for part in (self.backbone, self.text, self.encoder, self.decoder, self.verdict):
            # frozen, or what is made here once would keep its graph: gigabytes of the judge's
            part.requires_grad_(False).to(self.device)
        network = torch.compile(self.backbone, dynamic=False) if compiled else self.backbone
        self.network = cast(Backbone, network)  # what paints and trains
        self.seen = [self.read(self.references[:, i]) for i in range(n_references)]
        self.words = self.words_of(self.targets)
        self.no_words = self.texts([""])

    def paint(
        self,
        name: str,
        sampling: Sampling,
        positive: LoRAs | None,
        negative: LoRAs | None,
        start: Tensor | None = None,
        words: tuple[Tensor, Tensor] | None = None,
        after: After | None = None,
    ) -> Case:
        """Pictures with a LoRA per style on each side of CFG, judged. The noise is the same for every case.

        `start`: latents (S, C, h, w) to begin with, as far as `sampling.denoise` says. `words`: other conditionings
        than the prompts and the empty one, (S * P, T, D) each. `after`: changes the denoised latents of each step.
        """
        noise = self._noise()
        if start is not None:
            sigma = sampling.sigmas()[0]
            noise = sigma * noise + (1 - sigma) * start.repeat_interleave(self.n_prompts, 0)

        def draw(chosen: Tensor, x: Tensor, yes: Tensor, no: Tensor) -> Tensor:
            sides = (rows_of(lora, chosen) for lora in (positive, negative))
            change = None if after is None else functools.partial(after, chosen)
            return sample(self.network, x, yes, no, sampling, *sides, after=change)

        return self.drawn(name, draw, noise, words)

    def drawn(
        self,
        name: str,
        draw: Draw,
        noise: Tensor | None = None,
        words: tuple[Tensor, Tensor] | None = None,
    ) -> Case:
        """Pictures whose latents `draw` makes, judged. Without `noise` (S * P, C, h, w) it is that of `paint`."""
        noise = self._noise() if noise is None else noise
        yes, no = words or (self.words, self.no_words.expand_as(self.words))
        block = min(_BLOCK, self.styles) if self.device.type == "cpu" else self.styles
        out = []
        for first in range(0, self.styles, block):
            # the last block is filled up from the front: blocks of equal size are compiled once
            chosen = torch.arange(first, first + block, device=self.device) % self.styles
            x, a, b = (t.unflatten(0, (self.styles, -1))[chosen].flatten(0, 1) for t in (noise, yes, no))
            out.append(self.decoder(draw(chosen, x, a, b)).clamp(0, 1))
        case = self.judge(torch.cat(out)[: len(noise)])
        if self._talk:
            sys.stderr.write(f"{name}: {case.figures()}  {time.time() - self.started:.0f} s\n")
        return case

    def judge(self, pictures: Tensor, asked: Sequence[Content] | None = None) -> Case:
        """`pictures` (S * P, 3, H, W) against the references of their styles, and the prompts or what else is asked."""
        verdict = self.read(pictures)
        distances = [style_distance(verdict, self.repeated(reference)) for reference in self.seen]
        right = [
            getattr(verdict, f).argmax(1).cpu()
            == torch.tensor([getattr(c, f) for c in asked or self.targets])
            for f in PARTS
        ]
        return Case(pictures, verdict, torch.stack(distances).mean(0).cpu(), torch.stack(right, 1))

    def factors(self, case: Case) -> dict[str, Tensor]:
        """Factor -> mean distance to the references in it, (S * P,)."""
        made = style_parts(case.verdict)
        each = [style_parts(self.repeated(reference)) for reference in self.seen]
        return {
            name: torch.stack([(made[name] - parts[name]).norm(dim=-1) for parts in each]).mean(0).cpu()
            for name in made
        }

    def words_of(self, asked: Sequence[Content]) -> Tensor:
        """Conditionings (N, T, D) of prompts for contents."""
        return self.texts([content_prompt(c) for c in asked])

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Conditionings (N, T, D) of prompts."""
        return self.text(torch.tensor([tokenise(prompt) for prompt in prompts], device=self.device))

    def repeated(self, reference: Verdict) -> Verdict:
        """Of one reference per style -> of each of its pictures."""
        return Verdict(*(getattr(reference, f).repeat_interleave(self.n_prompts, 0) for f in _FIELDS))

    def paired(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        """Mean of a - b (S * P,) over styles and its bootstrap 95 % interval; styles are drawn, with all prompts."""
        change = (a - b).view(-1, self.n_prompts).mean(1)
        drawn = torch.randint(
            len(change), (_RESAMPLES, len(change)), generator=torch.Generator().manual_seed(_SEED)
        )
        low, high = change[drawn].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
        return {"mean": round(float(change.mean()), 4), "interval_95": [round(low, 4), round(high, 4)]}

    def about(self) -> dict[str, Any]:
        threads = torch.get_num_threads()
        return {
            "styles": self.styles,
            "machine": f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}",
            "seconds": round(time.time() - self.started, 1),
        }

    def _noise(self) -> Tensor:
        noise = torch.randn(len(self.words), 16, 16, 16, generator=torch.Generator().manual_seed(_SEED))
        return noise.to(self.device)

    def read(self, pictures: Tensor) -> Verdict:
        """What the judge reads in (N, 3, H, W)."""
        parts = [self.verdict(part) for part in pictures.split(_JUDGED)]
        return Verdict(*(torch.cat([getattr(part, f) for part in parts]) for f in _FIELDS))


def predict(references: Tensor, predictor: QueryNetwork | None = None) -> dict[str, LayerPair]:
    """References (S, N, 3, H, W) -> one LoRA per style, stacked: weight -> (down (S, k, in), up (S, out, k)).

    By the shipped predictor, or by another one that looks through the same encoder.
    """
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    encoder = loaded.encoder.float().to(references.device)
    network = predictor or loaded.predictor.float().to(references.device)
    parts = []
    for block in references.split(_BLOCK):
        tokens = encoder(block.flatten(0, 1) * 2 - 1).unflatten(0, block.shape[:2]).flatten(1, 2)
        parts.append({t.weight: pair for t, pair in network(tokens).layers().items()})
    return {k: (torch.cat([p[k][0] for p in parts]), torch.cat([p[k][1] for p in parts])) for k in parts[0]}


def rolled(loras: LoRAs) -> LoRAs:
    """Every style's LoRA given to the next style."""
    return {k: (down.roll(1, 0), up.roll(1, 0)) for k, (down, up) in loras.items()}


def repeated(loras: LoRAs, styles: int) -> LoRAs:
    """One LoRA for all styles."""
    return {k: (d.expand(styles, -1, -1), u.expand(styles, -1, -1)) for k, (d, u) in loras.items()}


def save_sheet(path: Path, references: Tensor, cases: Sequence[Case], rows: int = 12) -> None:
    """Four references, then two pictures of each condition, one style a row."""
    columns = [case.pictures.unflatten(0, (len(references), -1)) for case in cases]
    strips = []
    for s in range(min(rows, len(references))):
        pictures = [*references[s], *(p for column in columns for p in column[s])]
        strips.append(torch.cat([torch.nn.functional.pad(p, (2, 2, 2, 2), value=1.0) for p in pictures], 2))
    sheet = torch.cat(strips, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(sheet).save(path)


def as_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in 0..1."""
    pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8)  # CHW -> HWC
    return Image.fromarray(pixels.cpu().numpy())


def rows_of(loras: LoRAs | None, chosen: Tensor) -> dict[str, LayerPair] | None:
    """The LoRAs of these styles."""
    if loras is None:
        return None
    return {k: (down[chosen], up[chosen]) for k, (down, up) in loras.items()}
