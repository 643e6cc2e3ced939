"""Does the content of a reference reach the picture? Against chance, for training pairs of different and equal content.

One reference, a prompt for another content. For subject, count and place: how often the judge reads the reference's
word where the prompt says another one, and how often it would if the references were dealt anew (chance). Once with
the prompt, once without any, where nothing else says what to draw. Without a
LoRA it is chance by definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from i2l_core.demo.content import PARTS
from i2l_core.demo.judge import Verdict
from i2l_core.demo.sampler import Sampling

from .._world import Bench, LoRAs, predict
from . import variants

_DEALS = 2000  # of references, for chance and for the interval


def run(bench: Bench, steps: int) -> dict[str, Any]:
    makers: dict[str, LoRAs] = {"predicted": predict(bench.references)}
    for kind in variants.PAIRS:
        trained = variants.load_pairs(kind, bench.device)
        if trained is not None:
            name = f"predicted, trained on pairs of {kind.replace('_', ' ')}"
            makers[name] = predict(bench.references, trained)
    found: dict[str, Any] = {}
    for name, loras in makers.items():
        for title, words in {
            "prompt": None,
            "no prompt": (bench.no_words.expand_as(bench.words),) * 2,
        }.items():
            case = bench.paint(
                f"{name}, {title}", Sampling(steps, 3.0 if words is None else 1.0), loras, loras, None, words
            )
            found.setdefault(name, {})[title] = {
                **case.figures(),
                **_leaks(bench, case.verdict, prompted=words is None),
            }
    return {"makers": found}


def _leaks(bench: Bench, verdict: Verdict, prompted: bool) -> dict[str, Any]:
    """Share of pictures that show the reference's word, in percent; chance; and the difference with its interval."""
    found: dict[str, Any] = {}
    for part in PARTS:
        seen = getattr(verdict, part).argmax(1).cpu()
        shown = torch.tensor([getattr(row[0], part) for row in bench.pool.contents])
        reference = shown.repeat_interleave(bench.n_prompts)
        asked = torch.tensor([getattr(content, part) for content in bench.targets])
        counted = (reference != asked) if prompted else torch.ones_like(asked, dtype=torch.bool)
        rate = _rate(seen, reference, counted)
        generator = torch.Generator().manual_seed(0)
        chance = []
        for _ in range(_DEALS):
            dealt = shown[torch.randperm(len(shown), generator=generator)].repeat_interleave(bench.n_prompts)
            chance.append(_rate(seen, dealt, (dealt != asked) if prompted else counted))
        chances = torch.tensor(chance)
        low, high = (chances - chances.mean()).quantile(torch.tensor([0.025, 0.975])).tolist()
        found[part] = {
            "shown": round(100 * rate, 2),
            "chance": round(100 * float(chances.mean()), 2),
            "above_chance": round(100 * (rate - float(chances.mean())), 2),
            "spread_of_chance_95": [round(100 * low, 2), round(100 * high, 2)],
            "pictures": int(counted.sum()),
        }
    return found


def _rate(seen: Tensor, reference: Tensor, counted: Tensor) -> float:
    return float((seen == reference)[counted].float().mean())
