"""Decoding with the predictors of version 1 at their real sizes, against DiffSynth-Studio's own code.

Pairs of numbers are ours and theirs. Random weights, both networks on the same memory; each round runs one after
the other, so that other load on the machine cancels out of the ratio. A prediction reads every weight once, so
`weights_gb_s` against the memory's `bandwidth_gb_s` says how near it is to what the machine can do. Coarse and fine
do not fit everywhere: of Qwen-Image's predictors a quarter of the blocks is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench._measure import peak_bytes, timed
from i2l_core.base_models import BaseModel, find_model
from i2l_core.base_models.qwen_image import QWEN_IMAGE
from i2l_core.predictors.v1.kinds import COARSE, FINE, QWEN, Z_IMAGE, Residual, V1Config
from i2l_core.predictors.v1.network import V1Network

_ROUNDS = 3
_REFERENCES = (1, 4)
_QUARTER = 15  # of Qwen-Image's 60 blocks


def measure(device: torch.device, most_bytes: float) -> dict[str, Any]:
    """Every case whose weights take at most so many bytes."""
    out = {}
    for title, config, reference in _cases():
        for dtype in (torch.bfloat16, torch.float32):
            size = sum(torch.Size(shape).numel() for shape in config.shapes().values()) * dtype.itemsize
            if size <= most_bytes:
                name = f"{title}, {str(dtype).removeprefix('torch.')}"
                out[name] = {"weights_mb": round(size / 1e6)} | _compare(config, reference, device, dtype)
    return out


def _cases() -> list[tuple[str, V1Config, Callable[[], Any]]]:
    from diffsynth.models.qwen_image_image2lora import QwenImageImage2LoRAModel as Qwen
    from diffsynth.models.z_image_image2lora import ZImageImage2LoRAModel as ZImage

    z_image = find_model("z-image")
    assert z_image is not None
    quarter = BaseModel("quarter", "Qwen-Image", QWEN_IMAGE, {"hidden": 3072, "layers": _QUARTER}, {})
    style = V1Config(QWEN, quarter, 5632, 64)
    coarse = V1Config(QWEN, quarter, 5632, 128, residual=Residual(COARSE, 3584, 1024))
    fine = V1Config(QWEN, quarter, 5632, 128, residual=Residual(FINE, 3584, 64))
    return [
        ("Z-Image-i2L", V1Config(Z_IMAGE, z_image, 5632, 128), lambda: ZImage(compress_dim=128)),
        ("a quarter of Style", style, lambda: Qwen(_QUARTER, use_residual=False, compress_dim=64)),
        ("a quarter of Coarse", coarse, lambda: Qwen(_QUARTER)),
        ("a quarter of Fine", fine, lambda: Qwen(_QUARTER, residual_length=FINE, residual_mid_dim=64)),
    ]


def _compare(
    config: V1Config, reference: Callable[[], Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    from diffsynth.utils.lora.merge import merge_lora

    ours = V1Network(config, device, dtype)
    for parameter in ours.parameters():
        _fill(parameter)
    with torch.device("meta"):
        theirs = reference()
    theirs.load_state_dict(ours.tensors(), assign=True)
    theirs.requires_grad_(False)
    nbytes = sum(parameter.nbytes for parameter in ours.parameters())
    out: dict[str, Any] = {}
    for count in _REFERENCES:
        x = torch.randn(count, config.token_dim, device=device).to(dtype)
        states = None
        if config.residual:
            states = torch.randn(count, config.residual.length, config.residual.width, device=device).to(
                dtype
            )

        def decode(x: Tensor = x, states: Tensor | None = states) -> None:
            ours(x, residuals=states)
            _settle(device)

        def decode_theirs(x: Tensor = x, states: Tensor | None = states) -> None:
            rows: Any = [None] * len(x) if states is None else states.flatten(1)[:, None]
            merge_lora([theirs(x[i : i + 1], rows[i]) for i in range(len(x))], alpha=1 / len(x))  # type: ignore
            _settle(device)

        with torch.inference_mode():
            decode()
            decode_theirs()
            rounds = [(_clocked(decode), _clocked(decode_theirs)) for _ in range(_ROUNDS)]
            sides = list(zip(*rounds, strict=True))
            peaks = peak_bytes(decode, device), peak_bytes(decode_theirs, device)
        out[str(count)] = {
            f"{clock}_per_reference": [
                round(statistics.median(each[i] for each in one) / count, 3) for one in sides
            ]
            for i, clock in enumerate(("seconds", "cpu_seconds"))
        }
        seconds = [statistics.median(each[0] for each in one) for one in sides]
        out[str(count)] |= {
            "weights_gb_s": [round(nbytes / each / 1e9, 1) for each in seconds],
            "times_faster": round(statistics.median(b[0] / a[0] for a, b in rounds), 2),
            "times_less_cpu": round(statistics.median(b[1] / a[1] for a, b in rounds), 2),
            "peak_mb_over_weights": [round(peak / 1e6) for peak in peaks],
        }
    return out


def _fill(parameter: Tensor) -> None:
    """Normal values, the same million of them again and again: a billion new ones would take a minute."""
    flat = parameter.view(-1)
    seed = (
        torch.randn(min(1 << 20, len(flat)), device=flat.device).to(flat.dtype) * parameter.shape[-1] ** -0.5
    )
    for part in flat.split(len(seed)):
        part.copy_(seed[: len(part)])


def _clocked(action: Callable[[], object]) -> tuple[float, float]:
    """(seconds, seconds of this process on the CPU, which other load on the machine hardly changes)"""
    start = time.process_time()
    seconds = timed(action)
    return seconds, time.process_time() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
