"""How long a prediction takes and how much memory it needs beside its weights, against what the machine could do.

    python -m bench.predict --json [--full] [--v1 GB]

Sizes: the tiny world's shipped predictor, and with a GPU (or --full) a full-size one with random weights: SigLIP2
so400m-patch16-384, hidden 2048, every Linear of the blocks of FLUX.2 klein 4B, rank 16. The roofline is the larger
of the multiplications over the machine's measured matrix speed and the weights over its measured bandwidth, both
measured in this run. With --v1, decoding with the predictors of version 1 instead, against DiffSynth-Studio's code.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from i2l_core.demo import files
from i2l_core.encoders import SQUARE, EncoderConfig, VisionEncoder
from i2l_core.predictors.checkpoint import load_predictor
from i2l_core.predictors.query import LayerSpec, QueryConfig, QueryPredictor

_REFERENCES = (1, 4, 16)
_RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument(
        "--full", action="store_true", help="the full size on a machine without GPU too (needs 20 GB)"
    )
    parser.add_argument(
        "--v1",
        type=float,
        metavar="GB",
        help="version 1, with weights up to this size (needs 8, or 4 without fp32)",
    )
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if options.v1:
        from bench import _v1

        print(json.dumps({"device": _machine(device), "v1": _v1.measure(device, options.v1 * 1e9)}))
        return
    result: dict = {"device": _machine(device), "tiny": _measure(*_tiny(device))}
    result["full"] = _measure(*_full(device)) if gpu or options.full else None
    print(json.dumps(result))


def _tiny(device: torch.device) -> tuple[VisionEncoder, QueryPredictor, torch.dtype]:
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    return loaded.encoder.float().to(device), loaded.predictor.float().to(device), torch.float32


def _full(device: torch.device) -> tuple[VisionEncoder, QueryPredictor, torch.dtype]:
    sizes = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    config = EncoderConfig(SQUARE, sizes | {"patch_size": 16, "image_size": 384}, image_size=384)
    query = QueryConfig(
        hidden=2048, blocks=4, heads=16, code=64, rank=16, token_dim=1152, layers=_klein_layers()
    )  # fmt: skip
    encoder, predictor = VisionEncoder(config, device), QueryPredictor(query, device)
    return encoder.bfloat16(), predictor.bfloat16(), torch.bfloat16


def _klein_layers() -> tuple[LayerSpec, ...]:
    """Every Linear of the 5 double and 20 single blocks of FLUX.2 klein 4B, with its (input, output) width."""
    d = 3072
    double = {"attn.qkv": (d, 3 * d), "attn.proj": (d, d), "mlp.0": (d, 6 * d), "mlp.2": (3 * d, d)}
    layers = [
        LayerSpec(f"double_blocks.{i}.{side}_{name}", None, *shape)
        for i in range(5)
        for side in ("img", "txt")
        for name, shape in double.items()
    ]
    single = {"linear1": (d, 9 * d), "linear2": (4 * d, d)}
    layers += [
        LayerSpec(f"single_blocks.{i}.{n}", None, *shape) for i in range(20) for n, shape in single.items()
    ]
    return tuple(layers)


@torch.inference_mode()
def _measure(encoder: VisionEncoder, predictor: QueryPredictor, dtype: torch.dtype) -> dict:
    device = next(predictor.parameters()).device
    speed, bandwidth = _matrix_speed(device, dtype), _bandwidth(device)
    weights = sum(p.numel() * p.element_size() for net in (encoder, predictor) for p in net.parameters())
    side = encoder.config.image_size or 0
    out: dict = {
        "parameters_million": round(
            sum(p.numel() for n in (encoder, predictor) for p in n.parameters()) / 1e6, 1
        ),
        "weights_mb": round(weights / 1e6, 1),
        "matrix_gflops": round(speed / 1e9),
        "bandwidth_gb_s": round(bandwidth / 1e9),
    }
    for count in _REFERENCES:
        generator = torch.Generator().manual_seed(count)
        pictures = [torch.rand(side, side, 3, generator=generator).to(device) for _ in range(count)]

        def predict(pictures: list[torch.Tensor] = pictures) -> None:
            prediction = predictor(encoder.encode(pictures).to(dtype))
            if device.type == "cuda":
                torch.cuda.synchronize()
            del prediction

        predict()
        seconds = [_timed(predict) for _ in range(_RUNS)]
        floor = max(_flops(encoder, predictor, count) / speed, weights / bandwidth)
        median = statistics.median(seconds)
        out[str(count)] = {
            "seconds": round(median, 4),
            "roofline_seconds": round(floor, 4),
            "over_roofline": round(median / floor, 2),
            "peak_mb_over_weights": round(_peak(predict, device) / 1e6, 1),
        }
        out[str(count)]["peak_share_of_weights"] = round(
            out[str(count)]["peak_mb_over_weights"] * 1e6 / weights, 3
        )
    return out


def _flops(encoder: VisionEncoder, predictor: QueryPredictor, count: int) -> float:
    """Multiply-adds times two of all matrix products, counted from the sizes."""
    c, p = encoder.config.config, predictor.config
    tokens = (c["image_size"] // c["patch_size"]) ** 2
    block = 4 * c["hidden_size"] ** 2 + 2 * c["hidden_size"] * c["intermediate_size"]
    encode = c["num_hidden_layers"] * (tokens * block + 2 * tokens**2 * c["hidden_size"])
    states = p.n_queries + count * tokens
    transform = p.blocks * (states * (4 * p.hidden**2 + 2 * p.hidden * p.mlp) + 2 * states**2 * p.hidden)
    decode = sum(p.rank * (2 * p.hidden * p.code + p.code * (s.d_in + s.d_out)) for s in p.layers)
    return 2.0 * (count * encode + transform + decode)


def _matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(_timed(lambda: _settled(a @ b)) for _ in range(_RUNS))


def _bandwidth(device: torch.device) -> float:
    a = torch.ones(1 << (30 if device.type == "cuda" else 26), device=device)
    return a.numel() * 4 / min(_timed(lambda: _settled(a.sum())) for _ in range(_RUNS))


def _settled(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        torch.cuda.synchronize()
    return x


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _peak(action: Callable[[], None], device: torch.device) -> float:
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


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    model = next(
        (x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")),
        platform.machine(),
    )
    return f"{model.split(':')[-1].strip()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
