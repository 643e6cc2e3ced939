"""Any base model of ComfyUI as a frozen, differentiable network, with one LoRA per group of batch rows.

The model runs as the host samples it (`apply_model`, its own conditioning, its own time shift), so what is trained is
what will be used. Weights stay outside of the host's memory management: nothing may move them during training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import torch
from comfy.model_base import BaseModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...base_models import ARCHITECTURES, Weights, recognise
from ...errors import I2LError
from ...grouped_lora import GroupedLoRA, from_batched
from ...lora import Target
from ...predictors.query.config import LayerSpec
from ...train.base import Layers, Texts
from ...train.checkpointing import checkpoint_blocks, copy_norm_inputs
from ...train.config import BaseTable
from ..live.hooks import ActiveLoRAs, Hooks
from .codec import HostLatentCodec

_DTYPES = {"stored": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class HostBaseLoader:
    """A `train.session.BaseLoader`."""

    def codec(self, table: BaseTable, device: torch.device) -> HostLatentCodec:
        return HostLatentCodec(table)

    @contextlib.contextmanager
    def base(self, table: BaseTable, device: torch.device, split_fused: bool) -> Iterator[HostBase]:
        """The model of a config, for as long as the training lasts.

        Raises I2LError when the file is not a flow-matching diffusion model, or is unknown and the config has no id.
        """
        path = Path(table.model)
        if not os.path.isfile(path):
            raise I2LError(f"[base] model: there is no file {path}")
        dtype = _DTYPES[table.dtype]
        try:
            patcher = comfy.sd.load_diffusion_model(
                str(path), model_options={"dtype": dtype} if dtype else {}
            )
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise I2LError(f"[base] model: ComfyUI cannot load {path.name}: {reason}") from error
        with training():
            yield HostBase(patcher.model, device, table.id, table.checkpointing, split_fused)


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Within it the host uses operations that have gradients, in place of its fused ones."""
    before, comfy.model_management.in_training = comfy.model_management.in_training, True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


class _WithoutOut(TorchFunctionMode):
    """Sums and products give a new tensor, also where the host names one to write into (`out=`).

    From ComfyUI 0.33 on the blocks of HiDream-O1 do so, which autograd refuses. They go on with what is returned.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.add, torch.mul) and torch.is_grad_enabled():
            kwargs.pop("out", None)
        return func(*args, **kwargs)


class HostBase:
    """A `train.base.Base`. Use it within `training()`."""

    def __init__(
        self, model: BaseModel, device: torch.device, id: str, checkpointing: bool, split_fused: bool
    ) -> None:
        sampling = model.model_sampling
        if not isinstance(sampling, comfy.model_sampling.CONST):
            raise I2LError("[base] model: this is not a flow-matching model; only those can be trained for")
        self._model, self._sampling, self._device = (
            model.to(device).requires_grad_(False).eval(),
            sampling,
            device,
        )
        network = model.diffusion_model
        weights = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
        self.id = _id_of(weights, id)
        self.layers = layers_of(network, weights, split_fused)
        self.noise_scale = float(getattr(sampling, "noise_scale", 1.0))
        self._widths = {
            name.removesuffix(".weight"): shape[0] for name, shape in weights.items() if len(shape) == 2
        }
        self._hooks = Hooks({layer.weight: network.get_submodule(layer.weight) for layer in self.layers})
        copy_norm_inputs(network)
        if checkpointing:
            checkpoint_blocks(network, self._remember)

    def sigmas(self, u: Tensor) -> Tensor:
        """Never below the lowest level that the host samples at."""
        levels = torch.tensor([self._sampling.percent_to_sigma(1 - float(part)) for part in u])
        return levels.clamp(min=float(self._sampling.sigma_min)).to(u)

    def process_in(self, latents: Tensor) -> Tensor:
        return self._model.process_latent_in(latents)

    def process_out(self, latents: Tensor) -> Tensor:
        return self._model.process_latent_out(latents)

    def velocity(self, x: Tensor, sigma: Tensor, texts: Sequence[Texts], layers: Layers | None) -> Tensor:
        """Rows whose conditioning the host would not batch (prompts of other lengths) run one after the other."""
        products = from_batched(layers, self._widths) if layers else {}
        conds = [self._conds(text, x[i : i + 1]) for i, text in enumerate(texts)]
        batches = _batches(conds)
        parts = [
            self._run(
                x[rows],
                sigma[rows],
                [conds[i] for i in rows],
                products if len(rows) == len(x) else _rows_of(products, rows, len(x)),
            )
            for rows in batches
        ]
        order = torch.tensor([i for rows in batches for i in rows], device=x.device)
        return torch.cat(parts)[order.argsort()]

    def _run(
        self,
        x: Tensor,
        sigma: Tensor,
        conds: Sequence[Mapping[str, Any]],
        products: Mapping[str, GroupedLoRA],
    ) -> Tensor:
        options = {}
        if hasattr(self._model.diffusion_model, "clear_kv_cache"):
            # keeps keys and values of the prompt, gradients and all, unless some block seems to be replaced
            options["patches_replace"] = {"dit": {("i2l", 0): None}}
        acting = ActiveLoRAs(products, slice(0, len(x)), len(x), None, {})
        with self._acting(acting):
            clean = self._model.apply_model(
                x, sigma, **comfy.samplers.cond_cat(list(conds)), transformer_options=options
            )
        return (x - clean) / sigma.view(-1, *[1] * (x.ndim - 1))

    def _conds(self, text: Texts, x: Tensor) -> dict[str, Any]:
        rest = {name: value for name, value in text.items() if name != "cond"}
        conds = comfy.sampler_helpers.convert_cond([[text.get("cond"), rest]])
        encoded = comfy.samplers.encode_model_conds(self._model.extra_conds, conds, x, x.device, "positive")
        return {
            name: cond.process_cond(batch_size=1, area=None)
            for name, cond in encoded[0]["model_conds"].items()
        }

    def _remember(self) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        acting = self._hooks.now
        return lambda: self._acting(acting)

    @contextlib.contextmanager
    def _acting(self, acting: ActiveLoRAs | None) -> Iterator[None]:
        writes = hasattr(self._model.diffusion_model, "clear_kv_cache")  # HiDream-O1
        with self._hooks.acting(acting), _WithoutOut() if writes else contextlib.nullcontext():
            yield


def layers_of(network: nn.Module, weights: Weights, split_fused: bool) -> tuple[LayerSpec, ...]:
    """Every Linear of a model that can carry a LoRA, in its architecture's order; of the network where none fits."""
    architecture = next(
        (architecture for architecture in ARCHITECTURES if architecture.matches(weights)), None
    )
    if architecture is None:
        return tuple(
            LayerSpec(name, None, module.in_features, module.out_features)
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear)
        )
    specs = {}
    for slot in architecture.adapted_layers(weights):
        if split_fused or slot.target.rows is None:
            specs[slot.target] = LayerSpec(slot.target.weight, slot.target.rows, slot.d_in, slot.d_out)
        else:
            d_out, d_in = weights[f"{slot.target.weight}.weight"]
            specs[Target(slot.target.weight)] = LayerSpec(slot.target.weight, None, d_in, d_out)
    return tuple(specs.values())


def _id_of(weights: Weights, given: str) -> str:
    try:
        known = recognise(weights).id
    except I2LError as error:
        if given:
            return given
        raise I2LError(f"[base] model: {error}. To train for it anyway, give it an id in [base]") from error
    if given not in ("", known):
        raise I2LError(f"[base] id is {given!r}, but the model is {known!r}; leave the id out")
    return known


def _batches(conds: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Numbers of the rows that the host would run in one batch."""
    batches: list[list[int]] = []
    for i, cond in enumerate(conds):
        for rows in batches:
            first = conds[rows[0]]
            if first.keys() == cond.keys() and all(first[k].can_concat(cond[k]) for k in cond):
                rows.append(i)
                break
        else:
            batches.append([i])
    return batches


def _rows_of(products: Mapping[str, GroupedLoRA], rows: Sequence[int], count: int) -> dict[str, GroupedLoRA]:
    """The products of some rows of `count`, each row a group of its own."""
    picked = {}
    for name, product in products.items():
        groups = [row * product.groups // count for row in rows]
        picked[name] = GroupedLoRA(
            product.down[groups], product.up[groups], tuple(product.lora_index[g] for g in groups)
        )
    return picked
