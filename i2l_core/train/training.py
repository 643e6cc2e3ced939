"""The training loop: steps over micro-batches, measurements, sheets, checkpoints, and a stop at the first NaN."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..checks import listed
from ..encoders import VisionEncoder
from ..errors import I2LError
from ..predictors.query.network import QueryNetwork
from .base import Base, LatentCodec
from .checkpoints import Checkpoints
from .config import OptimiserTable, RunTable, TrainConfig
from .data.batches import Batch, BatchSplit, MicroBatches, Raw, read, to_device
from .data.data_set import Styles
from .data.encoded import EncodedData
from .data.pairing import Pair, draw
from .ema import Ema
from .log import TrainingLog
from .objective import Objective
from .optimiser import Optimiser
from .plan import Plan
from .sheet import draw_sheet

_MEASURED = 4  # batches of unseen styles, always the same ones
_UNSEEN_SEED = 1_000_003  # apart from those of training
_SHEET_PROMPTS = 2  # of each style


class Training:
    """`accelerator`: accelerate's, which spreads the objective over devices and averages their gradients."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Any,
        base: Base,
        codec: LatentCodec,
        encoder: VisionEncoder,
        predictor: QueryNetwork,
        styles: Styles,
        unseen: Styles | None,
        encoded: EncodedData,
        checkpoints: Checkpoints,
    ) -> None:
        self._config, self._accelerator, self._base, self._codec = config, accelerator, base, codec
        self._styles, self._unseen, self._encoded = styles, unseen, encoded
        self._split = BatchSplit(
            config.plan.batch, config.run.micro_batch, accelerator.process_index, accelerator.num_processes
        )
        encoder.to(accelerator.device)
        if config.run.precision == "bf16":
            encoder.bfloat16()
        objective = Objective(predictor, encoder, base, config.encoder.batch)
        self._objective = _spread(accelerator, objective, config.run)
        self._params = params = dict(objective.predictor.named_parameters())
        self._optimiser = optimiser(params, config.optimiser, config.plan)
        self._average = Ema(params, config.plan.average)
        self._state = {
            "predictor": params,
            "average": self._average.tensors,
            "optimiser": self._optimiser.tensors(),
        }
        self._checkpoints = checkpoints
        self.step = checkpoints.load(self._state)

    def run(self) -> None:
        """Train to the last step. Raises I2LError on a broken picture, a full disk, or a loss that is not finite.

        Running it again resumes from the newest checkpoint.
        """
        config, main = self._config, self._accelerator.is_main_process
        steps = config.plan.steps
        if self.step >= steps:
            return
        log = TrainingLog(config.folder, self.step, steps, config.run.tensorboard) if main else None
        feed = MicroBatches(
            self._styles, self._encoded, config.pairing, self._split, config.plan.seed
        ).from_step(self.step, steps, config.data.workers)
        with contextlib.closing(log) if log else contextlib.nullcontext():
            while self.step < steps:
                loss, figures = self._update(feed)
                self.step += 1
                if self._due(config.run.measure_every) and self._unseen is not None:
                    figures |= self._measure(self._unseen)
                if torch.cuda.is_available():
                    figures["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
                if log:
                    log.row(self.step, loss, figures)
                if self._due(config.run.sheet_every):
                    self._sheet()
                if self._due(config.plan.save_every):
                    self._checkpoints.save(self.step, self._state)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self._config.plan.steps)

    def _update(self, feed: Iterator[Raw]) -> tuple[float, dict[str, float]]:
        """One step: its loss over all devices; the learning rate, and the gradient's norm before it was clipped."""
        rounds, tried, own = self._split.rounds, [], torch.zeros((), device=self._accelerator.device)
        for turn in range(rounds):
            raw = next(feed)
            batch = to_device(raw, self._base, self._codec, self._accelerator.device)
            last = turn + 1 == rounds
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._objective):
                loss = self._loss(batch)
                self._accelerator.backward(loss / rounds)
            tried.append((raw.pairs, loss.detach()))
            own += loss.detach() / rounds
        loss, gradient = float(self._accelerator.reduce(own, "mean")), self._optimiser.clip()
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            self._abort(loss, gradient, tried)
        self._check_gradients()
        rate = self._optimiser.step(self._config.plan.factor(self.step))
        self._average.update(self.step)
        return loss, {"rate": rate, "gradient": round(gradient, 5)}

    def _loss(self, batch: Batch, bare: bool = False) -> Tensor:
        with self._accelerator.autocast():
            return self._objective(batch, bare=bare)

    def _check_gradients(self) -> None:
        without = [name for name, p in self._params.items() if p.grad is None]
        if without:
            raise I2LError(
                f"[predictor] layers: no gradient reaches {listed(without)}, so the base model never runs some of its "
                "layers, such as those for reference pictures; leave them out"
            )

    def _abort(self, loss: float, gradient: float, tried: Sequence[tuple[Sequence[Pair], Tensor]]) -> None:
        """Describe the micro-batches of this device, which everything about them can be made from again; and end."""
        device = self._accelerator.process_index
        path = self._config.folder / f"bad-step-{self.step:08d}-device-{device}.json"
        pictures = self._encoded.data.pictures
        described = [
            {
                "loss": float(value),
                "pairs": [
                    {
                        "references": ["gray" if pair.gray else pictures[i].name for i in pair.references],
                        "targets": [
                            {**asdict(target), "name": pictures[target.picture].name}
                            for target in pair.targets
                        ],
                    }
                    for pair in pairs
                ],
            }
            for pairs, value in tried
        ]
        path.write_text(json.dumps(described, indent=1, ensure_ascii=False), "utf-8")
        culprits = [pairs for pairs, value in tried if not math.isfinite(float(value))] or [tried[0][0]]
        first = pictures[culprits[0][0].targets[0].picture].name
        newest = self._checkpoints.newest()
        raise I2LError(
            f"step {self.step}: the loss is {loss} and the gradient {gradient}, so the step was not taken. The batch "
            f"(with {first}) is described in {path}; "
            f"{f'{newest.name} is the last checkpoint' if newest else 'there is no checkpoint yet'}. "
            "Look at its pictures and latents, or lower [plan] lr"
        )

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        self._average.swap()
        try:
            yield
        finally:
            self._average.swap()
            for module in self._objective.modules():
                if isinstance(
                    module, FSDPModule
                ):  # otherwise FSDP keeps gathered parameters until a backward pass that never runs
                    module.reshard()

    @torch.no_grad()
    def _measure(self, unseen: Styles) -> dict[str, float]:
        """The loss on styles kept out of training, and its ratio to the loss without a LoRA."""
        with_lora, without = (torch.zeros((), device=self._accelerator.device) for _ in range(2))
        table = replace(self._config.pairing, gray=0.0, empty_prompts=0.0)
        with self._averaged():
            for number in range(_MEASURED):
                pairs = draw(unseen, table, self._split.count, _UNSEEN_SEED, number)
                for turn in range(self._split.rounds):
                    batch = self._batch(pairs[self._split.part(turn)])
                    with_lora += self._loss(batch)
                    without += self._loss(batch, bare=True)
        with_lora, without = (float(self._accelerator.reduce(x, "mean")) for x in (with_lora, without))
        count = _MEASURED * self._split.rounds
        return {"unseen_loss": round(with_lora / count, 5), "unseen_ratio": round(with_lora / without, 4)}

    def _batch(self, pairs: Sequence[Pair]) -> Batch:
        raw = read(pairs, self._encoded)
        return to_device(raw, self._base, self._codec, self._accelerator.device)

    @torch.no_grad()
    def _sheet(self) -> None:
        """Every device predicts, as the predictor may be spread over them; the first one draws."""
        run, styles = self._config.run, self._unseen or self._styles
        table = replace(self._config.pairing, targets=_SHEET_PROMPTS, gray=0.0, single=0.0, empty_prompts=0.0)
        each = [
            Styles(styles.data, (name,), (members,))
            for name, members in zip(styles.names, styles.members, strict=True)
        ]
        pairs = [draw(one, table, 1, _UNSEEN_SEED, n)[0] for n, one in enumerate(each[: run.sheet_styles])]
        batch = self._batch(pairs)
        with self._averaged():
            with self._accelerator.autocast():
                layers = self._objective(references=batch.references)
        if self._accelerator.is_main_process:
            noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(0)).to(batch.x)
            negative = None
            if run.sheet_cfg != 1:
                texts = self._encoded.texts(0, "")
                negative = self._codec.texts([""])[0] if texts is None else texts
                negative = {name: tensor.to(batch.x.device) for name, tensor in negative.items()}
            draw_sheet(
                self._config.folder / "sheets" / f"step-{self.step:08d}.png",
                self._base,
                self._codec,
                run,
                batch.references,
                noise,
                batch.texts,
                [target.prompt for pair in pairs for target in pair.targets],
                negative,
                layers,
            )
        self._accelerator.wait_for_everyone()


def optimiser(params: Mapping[str, nn.Parameter], table: OptimiserTable, plan: Plan) -> Optimiser:
    """Muon, where it is asked for, takes the matrices inside blocks."""
    matrices = [
        k for k, p in params.items() if table.kind == "muon" and p.ndim == 2 and k.startswith("blocks.")
    ]
    return Optimiser(params, matrices, plan.lr, plan.weight_decay, table.beta, table.clip)


def _spread(accelerator: Any, objective: Objective, config: RunTable) -> nn.Module:
    """The objective on the devices: a copy on each, or its predictor in shards, block by block and head by head.

    Shards are torch's own: accelerate knows them on GPUs only, and there they could not be tested with two CPUs.
    """
    if config.sharding == "none" or accelerator.num_processes == 1:
        return accelerator.prepare(objective)
    objective.to(accelerator.device)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if config.precision == "bf16" else None, reduce_dtype=torch.float32
        ),
    }
    predictor = objective.predictor
    for part in (*predictor.blocks, *predictor.heads.values(), objective):
        fully_shard(part, **options)  # in place
    return objective
