"""The transformer of Infinity under ComfyUI's memory comfy.model_management.

It is no MODEL: a KSampler cannot draw with it, since nothing in it is diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...checks import listed
from ...errors import I2LError
from ...infinity.config import InfinityConfig
from ...infinity.files import (
    CODER,
    check_k_biases,
    check_transformer,
    joined,
    kind_of,
    shard_names,
    transformer_weights,
)
from ...infinity.scales import Scales
from ...infinity.transformer import Infinity
from .read import check_values, read_weights, shapes_of

# float16 is left out: the released models were trained in bfloat16, whose range they may need
COMPUTED = [torch.bfloat16, torch.float32]
_FLOAT8 = torch.float8_e4m3fn
# Computed in float32 by the reference too; small, or not cast by the host's layers
_PRECISE = ("shared_ada_lin.", "head_nm.", "head.", "pos_start", "lvl_embed.", "cfg_uncond", "text_norm.")
_PRECISE_IN_BLOCKS = (".ada_gss", ".scale_mul_1H11", ".ca_norm.weight", ".ca_norm.bias")


@dataclass(frozen=True)
class InfinityModel:
    """`dtype`: what products are computed in. `name`: of the file. `scales`: of a model that draws one size alone;
    None: any of the released ones."""

    patcher: ModelPatcher
    config: InfinityConfig
    dtype: torch.dtype
    name: str
    scales: Scales | None = None

    @property
    def network(self) -> Infinity:
        return cast(Infinity, self.patcher.model)

    def get_models(self) -> list[ModelPatcher]:
        """As the host asks whatever holds models."""
        return [self.patcher]


def load_model(path: Path, float8: bool = False, disable_dynamic: bool = False) -> InfinityModel:
    """A transformer from a file, or from any of the files that it is split into, whose siblings are read too.

    The host chooses devices and types. `float8`: keep the large weights of the blocks in 8 bits, e4m3, which halves
    them and changes pictures. Raises I2LError, with the file's name, for anything that is not exactly an Infinity
    transformer.
    """
    weights, config = _read(path)
    model = model_of(weights, config, path.name, float8, disable_dynamic)
    model.patcher.cached_patcher_init = (load_patcher, (path, float8))  # for several GPUs
    return model


def model_of(
    weights: dict[str, Tensor],
    config: InfinityConfig,
    name: str,
    float8: bool = False,
    disable_dynamic: bool = False,
) -> InfinityModel:
    """A transformer from the weights of a checked file, under their released names. `weights` is emptied, so that each
    is freed once it is converted."""
    found = transformer_weights(weights)
    weights.clear()
    device = comfy.model_management.get_torch_device()
    dtype, computed = _dtypes(found, device)
    types = {key: _stored_as(key, tensor, dtype, float8) for key, tensor in found.items()}
    casting: Any = comfy.ops.manual_cast  # stands for torch.nn
    network = Infinity(config, casting, device="meta", dtype=dtype)
    kept: dict[str, Tensor] = {}
    while found:
        key, tensor = found.popitem()
        kept[key] = tensor.to(types[key])
    network.load_state_dict(kept, strict=True, assign=True)
    network.requires_grad_(False)
    # looked up now: ComfyUI chooses the class of patcher when it starts
    patchers = comfy.model_patcher
    kind = patchers.ModelPatcher if disable_dynamic else patchers.CoreModelPatcher
    patcher = kind(
        network.eval(), load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )
    return InfinityModel(patcher, config, computed, name)


def load_patcher(path: Path, float8: bool, disable_dynamic: bool = False) -> ModelPatcher:
    return load_model(path, float8, disable_dynamic).patcher


def _read(path: Path) -> tuple[dict[str, Tensor], InfinityConfig]:
    try:
        names = shard_names(path.name)
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error
    if missing := [name for name in names if not path.with_name(name).is_file()]:
        raise I2LError(
            f"{path.name}: expected all {len(names)} files of this model in one folder, but {listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; download {'it' if len(missing) == 1 else 'them'}"
        )
    parts = {name: read_weights(path.with_name(name), "an Infinity transformer") for name in names}
    try:
        weights = joined(parts)
        if kind_of(weights) == CODER:
            raise I2LError(
                "this is a VAE of Infinity; choose its transformer here, and put this into models/vae"
            )
        config = check_transformer(shapes_of(weights))
        check_k_biases(weights)
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error
    for name, part in parts.items():
        check_values(path.with_name(name), part)
    return weights, config


def _dtypes(weights: Mapping[str, Tensor], device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """What most weights are kept in, and what is computed in, as the host chooses them for a MODEL."""
    stored = comfy.model_management.unet_dtype(
        device=device,
        model_params=sum(tensor.numel() for tensor in weights.values()),
        supported_dtypes=COMPUTED,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    return stored, comfy.model_management.unet_manual_cast(stored, device, COMPUTED) or stored


def _stored_as(name: str, tensor: Tensor, dtype: torch.dtype, float8: bool) -> torch.dtype:
    if name.startswith(_PRECISE) or name.endswith(_PRECISE_IN_BLOCKS):
        return torch.float32
    large = name.startswith("blocks.") and tensor.ndim == 2
    if large:
        return _FLOAT8 if float8 else dtype
    # Eight bits are for large matrices alone, also where the host or the file has them for all
    return dtype if dtype.itemsize > 1 else torch.bfloat16
