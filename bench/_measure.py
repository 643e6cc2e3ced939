"""Seconds, bytes and the name of the machine, for the benchmarks."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_bytes(action: Callable[[], None], device: torch.device) -> float:
    """Most bytes in use during the action over those in use before it, as PyTorch's allocator counts them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        action()
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    return max(itertools.accumulate((nbytes for _, nbytes in changes), initial=0))


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    model = next(
        (x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")),
        platform.machine(),
    )
    return f"{model.split(':')[-1].strip()}, {torch.get_num_threads()} threads"
