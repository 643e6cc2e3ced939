"""Style and prompt: without a LoRA, of another style, predicted from 1 to 8 references, and what else one could do."""

from __future__ import annotations

from typing import Any

import torch

from i2l_core.demo.sampler import Sampling

from .._world import Bench, Case, predict, rolled
from . import variants

_REFERENCES = (1, 2, 4, 8)
_DENOISE = (0.75, 0.6)  # of img2img from the first reference


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Each condition with its change from "none" in prompt accuracy, paired over styles."""
    sampling = Sampling(steps)
    cases = {"none": bench.paint("none", sampling, None, None)}
    loras = {n: predict(bench.references[:, :n]) for n in _REFERENCES}
    wrong = rolled(loras[4])
    cases["wrong style"] = bench.paint("wrong style", sampling, wrong, wrong)
    for n, lora in loras.items():
        name = f"predicted, {n} reference{'s' * (n > 1)}"
        cases[name] = bench.paint(name, sampling, lora, lora)
    start = bench.encoder(bench.references[:, 0])
    for denoise in _DENOISE:
        name = f"img2img, denoise {denoise:g}"
        part = Sampling(max(1, round(steps * denoise)), sampling.cfg, denoise)
        cases[name] = bench.paint(name, part, None, None, start)
    for name, words in _adapter(bench).items():
        cases[name] = bench.paint(name, sampling, None, None, words=words)
    equally_long = variants.load_pairs("different_content", bench.device)
    if equally_long is not None:
        lora = predict(bench.references[:, :4], equally_long)
        name = "predicted, trained as long as the adapter"
        cases[name] = bench.paint(name, sampling, lora, lora)
    cases["real pictures"] = bench.judge(bench.real)
    return {
        "cases": {name: _figures(bench, case, cases["none"]) for name, case in cases.items()},
    }


def _adapter(bench: Bench) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The adapter's conditionings, on both sides of CFG and on the positive one, where it has been trained."""
    adapter = variants.load_adapter(bench.device)
    if adapter is None:
        return {}
    more = adapter(variants.tokens_of(bench.references[:, :4])).repeat_interleave(bench.n_prompts, 0)
    yes, no = torch.cat([bench.words, more], 1), bench.no_words.expand_as(bench.words)
    return {
        "adapter, both sides": (yes, torch.cat([no, more], 1)),
        "adapter, positive side": (yes, torch.cat([no, torch.zeros_like(more)], 1)),
    }


def _figures(bench: Bench, case: Case, none: Case) -> dict[str, Any]:
    right, right_none = (c.right.float().mean(1) for c in (case, none))
    nothing = torch.zeros_like(right)
    return {
        **case.figures(),
        "style_distance_interval_95": bench.paired(case.style_distance, nothing)["interval_95"],
        "prompt_accuracy_interval_95": bench.paired(right, nothing)["interval_95"],
        "prompt_accuracy_change": bench.paired(right, right_none),
        "by_factor": {name: round(float(d.mean()), 4) for name, d in bench.factors(case).items()},
    }
