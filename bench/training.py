"""What a step of training a predictor costs: measured at tiny size, counted and extrapolated for the full sizes.

    python -m bench.training --json [--real NAME ...]

Measured: seconds and peak memory of one step (predict, base model forward and backward, optimiser) on this machine.
Counted: the same code on the meta device, which computes shapes and nothing else: parameters, FLOPs of every matrix
product, bytes that autograd keeps. Extrapolated: these counts over the peak of a GPU at an assumed utilisation, plus
what the gradients take to travel. --real measures a full size with random weights; it needs a GPU of 80 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench._measure import machine, peak_bytes, timed
from bench._models import SIZES, Size, build
from i2l_core.encoders import SQUARE, EncoderConfig, VisionEncoder
from i2l_core.host.start import start_host
from i2l_core.predictors.query.network import QueryNetwork
from i2l_core.train.config import OptimiserTable, PredictorTable, load_config
from i2l_core.train.data.batches import Batch
from i2l_core.train.flow import noisy, velocity
from i2l_core.train.objective import Objective
from i2l_core.train.optimiser import Optimiser
from i2l_core.train.plan import Plan
from i2l_core.train.predictor import query_config
from i2l_core.train.training import optimiser

CONFIGS = Path(__file__).resolve().parent.parent / "i2l_core" / "train" / "configs"

_REFERENCES = 2  # of each predicted LoRA; the configs draw 1 to 4
_RUNS = 3
_FULL = {"z-image": "z-image-6b", "flux2-klein-4b": "flux2-4b", "hidream-o1": "hidream-o1-8b"}
_TINY_PREDICTOR = PredictorTable(
    hidden=64, blocks=2, heads=2, code=16, rank=4, layers=("*blocks.*", "*layers.*")
)

_SIGLIP2_GIANT = EncoderConfig(  # siglip2-giant-opt-patch16-384
    SQUARE,
    {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
    | {"patch_size": 16, "image_size": 384, "hidden_act": "gelu_pytorch_tanh"},
    image_size=384,
)  # fmt: skip
_SIGLIP_TINY = EncoderConfig(
    SQUARE,
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"patch_size": 16, "image_size": 64},
    image_size=64,
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """Peaks as their maker states them, dense bfloat16. `link`: bytes a second of a ring all-reduce over NVLink."""

    name: str
    flops: float
    link: float


GPUS = (Gpu("A100 80 GB", 312e12, 230e9), Gpu("H100 80 GB", 989e12, 360e9))
_UTILISATION = 0.4  # of the peak, as large transformers reach it with gradient checkpointing
_GLOBAL_BATCH = 8  # styles an update (paper, section 4.1)
_LORA_STEPS = 500  # of a LoRA trained for one style, which a prediction is held against
_PASSES = 2  # of the base model in such a step: forward, and backward through frozen weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--real", nargs="*", default=[], choices=_FULL, help="measure these on the GPU")
    options = parser.parse_args()
    device = torch.device("cuda" if options.real else "cpu")
    start_host(cpu=device.type == "cpu")
    from i2l_core.host.train.base import training

    result: dict[str, Any] = {"device": machine(device), "measured": {}, "counted": {}, "extrapolated": {}}
    with training():
        for name in () if options.real else ("flux2-tiny", "z-image-tiny"):
            for checkpointing in (False, True):
                key = f"{name}, checkpointing" if checkpointing else name
                result["measured"][key] = _measure(_tiny(SIZES[name], checkpointing))
        for name in options.real:
            result["measured"][name] = _measure(_full(name, device, True))
        for name in _FULL:
            counted = result["counted"][name] = _count(name)
            result["extrapolated"][name] = _extrapolate(counted)
    print(json.dumps(result))


@dataclass(frozen=True)
class Case:
    """One step's worth of everything. `latents`, `texts` stand for one target."""

    objective: Objective
    batch: Batch
    optimiser: Optimiser | None = None

    def loss(self) -> Tensor:
        if self.batch.x.device.type == "cuda":
            with torch.autocast("cuda", torch.bfloat16):
                loss = self.objective(self.batch)
        else:
            loss = self.objective(self.batch)
        assert isinstance(loss, Tensor)
        return loss

    def step(self) -> None:
        self.loss().backward()
        assert self.optimiser is not None
        self.optimiser.clip()
        self.optimiser.step(0)
        if self.batch.x.device.type == "cuda":
            torch.cuda.synchronize()


def _tiny(size: Size, checkpointing: bool) -> Case:
    cpu = torch.device("cpu")
    base = _base(build(size, torch.float32).model, cpu, checkpointing, False)
    encoder = VisionEncoder(_SIGLIP_TINY).requires_grad_(False)
    return _case(base, size, encoder, _TINY_PREDICTOR, cpu)


def _full(name: str, device: torch.device, checkpointing: bool) -> Case:
    """A config's training with random weights, or with none on the meta device."""
    config, size = load_config(CONFIGS / f"{name}.toml"), SIZES[_FULL[name]]
    model = _model(size, device) if device.type == "meta" else build(size, torch.bfloat16).model
    base = _base(model, device, checkpointing, config.predictor.split_fused)
    encoder = VisionEncoder(_SIGLIP2_GIANT, device, torch.bfloat16).requires_grad_(False)
    return _case(base, size, encoder, config.predictor, device)


def _model(size: Size, device: torch.device) -> Any:
    """The host's model without memory for its weights."""
    import comfy.supported_models

    config = getattr(comfy.supported_models, size.kind)(dict(size.config))
    config.set_inference_dtype(torch.bfloat16, None)
    return config.get_model({}, "", device=device)


def _base(model: Any, device: torch.device, checkpointing: bool, split_fused: bool) -> Any:
    from i2l_core.host.train.base import HostBase

    class Shapes(HostBase):
        """On the meta device a conditioning has shapes and no values: what reads values runs on the CPU before."""

        def _conds(self, text: Any, x: Tensor) -> dict[str, Any]:
            if not x.is_meta:
                return super()._conds(text, x)
            conds = super()._conds(text, torch.zeros(x.shape))
            conds.pop("vinput_mask", None)  # tokens can be picked by position instead
            for cond in conds.values():
                cond.cond = cond.cond.to("meta") if isinstance(cond.cond, Tensor) else cond.cond
            return conds

    known = {"i2l-tiny", "z-image", "flux2-klein-4b", "hidream-o1"}
    for id in ("", "tiny"):
        try:
            base = Shapes(model, device, id, checkpointing, split_fused)
        except ValueError:
            continue
        assert base.id in known | {"tiny"}
        return base
    raise AssertionError


def _case(base: Any, size: Size, encoder: VisionEncoder, table: PredictorTable, device: torch.device) -> Case:
    torch.manual_seed(0)
    query = query_config(table, base.layers, encoder.config.token_dim)
    predictor = QueryNetwork(query, device, torch.bfloat16 if device.type == "meta" else None)
    if device.type == "meta":  # no autocast there
        predictor.register_forward_pre_hook(lambda module, args: (args[0].bfloat16(), *args[1:]))
    side = encoder.config.image_size or 0
    pictures = [torch.rand(side, side, 3, device=device) for _ in range(_REFERENCES)]
    latents, noise = (torch.randn(1, *size.latent, device=device) for _ in range(2))
    sigma = torch.full((1,), 0.5, device=device)
    text: dict[str, Tensor] = {"cond": torch.randn(1, size.words, size.text_dim)}
    if size.kind == "HiDreamO1":
        text["text_input_ids"] = torch.tensor([[*range(5, 3 + size.words), 151669, 151673]])
    x, target = noisy(latents, noise, sigma), velocity(latents, noise)
    batch = Batch((), [pictures], x, sigma, target, [text])
    update = None
    if device.type != "meta":
        plan = Plan(steps=10, batch=1, lr=1e-5, seed=0)
        update = optimiser(dict(predictor.named_parameters()), OptimiserTable(), plan)
    return Case(Objective(predictor, encoder, base, 8), batch, update)


def _measure(case: Case) -> dict[str, float]:
    case.step()
    seconds = [timed(case.step) for _ in range(_RUNS)]
    weights = sum(p.numel() for p in case.objective.predictor.parameters())
    return {
        "seconds": round(statistics.median(seconds), 3),
        "peak_mb_over_state": round(peak_bytes(case.step, case.batch.x.device) / 1e6, 1),
        "predictor_million": round(weights / 1e6, 2),
    }


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as GPUs run it, without the matrix of all pairs that torch writes out on the meta device."""
    plain = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


@_fused_attention()
def _count(name: str) -> dict[str, float]:
    meta = torch.device("meta")
    plain, saving = (_full(name, meta, checkpointing) for checkpointing in (False, True))
    with FlopCounterMode(display=False) as counter:
        saving.loss().backward()
    total = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        saving.objective(references=saving.batch.references)
    predict = counter.get_total_flops()
    encoder, base = saving.objective._frozen
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        base.velocity(saving.batch.x, saving.batch.sigma, saving.batch.texts, None)
    forward = counter.get_total_flops()
    network = base._model.diffusion_model
    blocks = sum(1 for block in _run_blocks(plain))
    kept, everything = _kept_bytes(saving), _kept_bytes(plain)
    return {
        "base_parameters": sum(p.numel() for p in network.parameters()),
        "encoder_parameters": sum(p.numel() for p in encoder.parameters()),
        "predictor_parameters": sum(p.numel() for p in saving.objective.predictor.parameters()),
        "flops_base_forward": forward,
        "flops_predict_forward": predict,
        f"predictions_in_{_LORA_STEPS}_steps_of_a_lora": round(_LORA_STEPS * _PASSES * forward / predict),
        "flops_step_of_one_target": total,
        "kept_bytes_with_checkpointing": kept,
        "kept_bytes_without": everything,
        "blocks": blocks,
    }


def _run_blocks(case: Case) -> list[Any]:
    """The blocks that a step runs."""
    from i2l_core.train.checkpointing import blocks_of

    ran: list[Any] = []
    handles = [
        block.register_forward_hook(lambda module, *_: ran.append(module))
        for block in blocks_of(case.objective._frozen[1]._model.diffusion_model)
    ]
    with torch.no_grad():
        case.loss()
    for handle in handles:
        handle.remove()
    return ran


def _kept_bytes(case: Case) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once, parameters not counted."""
    parameters = {p.untyped_storage()._cdata for p in case.objective.parameters()}
    frozen = case.objective._frozen[1]._model.parameters()
    parameters |= {p.untyped_storage()._cdata for p in frozen}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # held, so that no other storage takes its number
        return tensor

    from i2l_core.train.checkpointing import blocks_of

    def keep_inputs(module: Any, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                keep(value)

    network = case.objective._frozen[1]._model.diffusion_model
    handles = [block.register_forward_pre_hook(keep_inputs, with_kwargs=True) for block in blocks_of(network)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = case.loss()
    for handle in handles:
        handle.remove()
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def _extrapolate(counted: dict[str, float]) -> list[dict[str, Any]]:
    """Seconds an update of the paper's batch, and memory of each GPU, for 1 and 8 of them."""
    weights = counted["predictor_parameters"]
    frozen = 2 * (counted["base_parameters"] + counted["encoder_parameters"])
    state = (
        22 * weights
    )  # float32 weights, gradients, two moments and the average; autocast's copy in 16 bits
    activations = (
        counted["kept_bytes_with_checkpointing"]
        + (counted["kept_bytes_without"] - counted["kept_bytes_with_checkpointing"]) / counted["blocks"]
    )
    rows = []
    for gpu in GPUS:
        for count in (1, 8):
            for sharding in ("none",) if count == 1 else ("none", "fsdp"):
                compute = counted["flops_step_of_one_target"] * _GLOBAL_BATCH / count
                # a ring all-reduce moves each byte nearly twice; shards travel three times, twice in 16 bits
                moved = {"none": 2 * 4, "fsdp": 2 * 2 + 4}[sharding] * weights * (count - 1) / count
                rows.append(
                    {
                        "gpu": gpu.name,
                        "gpus": count,
                        "sharding": sharding,
                        "seconds_a_step": round(compute / (gpu.flops * _UTILISATION) + moved / gpu.link, 2),
                        "memory_gb": round(
                            (frozen + state / (count if sharding == "fsdp" else 1) + activations) / 1e9, 1
                        ),
                    }
                )
    return rows


if __name__ == "__main__":
    main()
