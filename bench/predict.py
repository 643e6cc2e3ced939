"""How long a prediction takes and how much memory it needs beside its weights, against what the machine could do.

    python -m bench.predict --json [--full] [--v1 GB]

Sizes: the demo world's shipped predictor, and with a GPU (or --full) a full-size one with random weights: SigLIP2
so400m-patch16-384, hidden 2048, every Linear of the blocks of FLUX.2 klein 4B, rank 16. The roofline is the larger
of the multiplications over the machine's measured matrix speed and the weights over its measured bandwidth, both
measured in this run. With --v1, decoding with the predictors of version 1 instead, against DiffSynth-Studio's code.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from bench._measure import machine, peak_bytes, timed
from bench._models import klein_4b_layers
from i2l_core.demo import files
from i2l_core.encoders import SQUARE, EncoderConfig, VisionEncoder
from i2l_core.predictors.query.config import QueryConfig
from i2l_core.predictors.query.file import load_predictor
from i2l_core.predictors.query.network import QueryNetwork

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

        found = {"device": machine(device), "bandwidth_gb_s": round(_bandwidth(device) / 1e9, 1)}
        print(json.dumps(found | {"v1": _v1.measure(device, options.v1 * 1e9)}))
        return
    result: dict = {"device": machine(device), "tiny": _measure(*_tiny(device))}
    result["full"] = _measure(*_full(device)) if gpu or options.full else None
    print(json.dumps(result))


def _tiny(device: torch.device) -> tuple[VisionEncoder, QueryNetwork, torch.dtype]:
    loaded = load_predictor(files.WEIGHTS / files.PREDICTOR)
    return loaded.encoder.float().to(device), loaded.predictor.float().to(device), torch.float32


def _full(device: torch.device) -> tuple[VisionEncoder, QueryNetwork, torch.dtype]:
    sizes = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    config = EncoderConfig(SQUARE, sizes | {"patch_size": 16, "image_size": 384}, image_size=384)
    query = QueryConfig(
        hidden=2048, blocks=4, heads=16, code=64, rank=16, token_dim=1152, layers=klein_4b_layers()
    )  # fmt: skip
    encoder, predictor = VisionEncoder(config, device), QueryNetwork(query, device)
    return encoder.bfloat16(), predictor.bfloat16(), torch.bfloat16


@torch.inference_mode()
def _measure(encoder: VisionEncoder, predictor: QueryNetwork, dtype: torch.dtype) -> dict:
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
        seconds = [timed(predict) for _ in range(_RUNS)]
        floor = max(_flops(encoder, predictor, count) / speed, weights / bandwidth)
        median = statistics.median(seconds)
        out[str(count)] = {
            "seconds": round(median, 4),
            "roofline_seconds": round(floor, 4),
            "over_roofline": round(median / floor, 2),
            "peak_mb_over_weights": round(peak_bytes(predict, device) / 1e6, 1),
        }
        out[str(count)]["peak_share_of_weights"] = round(
            out[str(count)]["peak_mb_over_weights"] * 1e6 / weights, 3
        )
    return out


def _flops(encoder: VisionEncoder, predictor: QueryNetwork, count: int) -> float:
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
    return 2 * n**3 / min(timed(lambda: _settled(a @ b)) for _ in range(_RUNS))


def _bandwidth(device: torch.device) -> float:
    a = torch.ones(1 << (30 if device.type == "cuda" else 26), device=device)
    return a.numel() * 4 / min(timed(lambda: _settled(a.sum())) for _ in range(_RUNS))


def _settled(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        torch.cuda.synchronize()
    return x


if __name__ == "__main__":
    main()
