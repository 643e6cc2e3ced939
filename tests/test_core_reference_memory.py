"""What many references take beside the pictures that they are given: no more than one of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import TINY, WIDTH, save_encoder
from tiny_v1 import known, random_predictor, save
from tiny_world import save_random_predictor
from torch import Tensor

from i2l.i2l_core.encoders import DINOV3, SIGLIP2
from i2l.i2l_core.predictors import open_predictor
from i2l.i2l_core.predictors.plain_runtime import PlainRuntime
from i2l.i2l_core.predictors.v1.kinds import Z_IMAGE, V1Config
from i2l.i2l_core.references import references_with

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], float]:
    """Most bytes that PyTorch has in use during an action."""
    monkeypatch.syspath_prepend(str(ROOT))
    peak_bytes = importlib.import_module("bench._measure").peak_bytes
    return lambda action: peak_bytes(action, CPU)


def many(count: int, height: int, width: int, channels: int) -> Tensor:
    """(count, height, width, channels): pictures that all differ, in the memory of one."""
    values = torch.rand(height * width * channels + count * channels)
    return values.as_strided((count, height, width, channels), (channels, width * channels, channels, 1))


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is used": lambda x: x[..., :3].contiguous(),
    "beyond 0..1": lambda x: x[..., :3] * 1.2 - 0.1,
    "alpha": lambda x: x,
    "half": lambda x: x[..., :3].half(),
    "channels first": lambda x: x[..., :3].movedim(-1, 1).contiguous().movedim(1, -1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_references_take_no_memory_beside_their_pictures(kind: str, peak: Any):
    pictures, mask = KINDS[kind](many(8, 300, 450, 4)), torch.rand(8, 30, 45)
    copy = 300 * 450 * 3 * 4
    kept = []

    def make(count: int) -> None:
        kept.append(references_with(pictures[:count], 2.0, mask[:count]))

    one = peak(lambda: make(1))
    assert peak(lambda: make(8)) < one + copy / 5


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("family", ["query", "v1"])
def test_predictors_look_at_one_picture_at_a_time(family: str, masked: bool, tmp_path: Path, peak: Any):
    (tmp_path / "v1").mkdir()
    if family == "query":
        path = save_random_predictor(tmp_path / "tiny.safetensors", dtype=torch.float32)
    else:
        path = save(
            random_predictor(V1Config(Z_IMAGE, known("i2l-tiny"), WIDTH, 3)),
            tmp_path / "v1" / "a.safetensors",
        )
        for kind in (SIGLIP2, DINOV3):
            save_encoder(tmp_path / "v1" / f"{kind}.safetensors", TINY[kind])
    pictures, copy = many(5, 800, 1200, 3), 800 * 1200 * 3 * 4
    mask = torch.rand(80, 120) if masked else None

    def predict(count: int) -> None:
        with torch.inference_mode():
            found = predictor.predict(references_with(pictures[:count], 1.0, mask))
        assert len(found.lora.references) == count

    peaks = []
    for count in (1, 5):
        predictor = open_predictor(path, PlainRuntime(CPU, None, [path.parent]))
        # loads, and predicts the neutral LoRA
        predictor.predict(references_with(torch.rand(1, 8, 8, 3), 1.0))
        peaks.append(peak(lambda count=count: predict(count)))
    assert peaks[1] < peaks[0] + copy / 5
