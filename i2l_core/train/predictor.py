"""Build the predictor of a training, and export it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import listed
from ..encoders import VisionEncoder
from ..errors import I2LError
from ..predictors.query.config import LayerSpec, QueryConfig
from ..predictors.query.file import load_predictor, save_predictor
from ..predictors.query.network import QueryNetwork
from .config import PredictorTable


def query_config(table: PredictorTable, layers: Sequence[LayerSpec], token_dim: int) -> QueryConfig:
    """The configuration of the new predictor. Raises I2LError if no layer matches or a size is invalid."""
    chosen = tuple(
        layer for layer in layers if any(fnmatch.fnmatchcase(str(layer.target), p) for p in table.layers)
    )
    if not chosen:
        raise I2LError(
            f"[predictor] layers: none of {listed(table.layers)} matches a layer of the base model; it has "
            f"{listed(str(layer.target) for layer in layers)}"
        )
    return QueryConfig(
        hidden=table.hidden, blocks=table.blocks, heads=table.heads, code=table.code, rank=table.rank,
        token_dim=token_dim, layers=chosen, mlp_ratio=table.mlp_ratio, alpha=table.alpha,
    )  # fmt: skip


def new_predictor(config: QueryConfig, start: str, seed: int) -> QueryNetwork:
    """A predictor in float32 on the CPU, from the seed or from the file `start`. Raises I2LError if sizes differ."""
    torch.manual_seed(seed)
    if not start:
        return QueryNetwork(config)
    loaded = load_predictor(start)
    if loaded.config != config:
        raise I2LError(
            f"[predictor] start: {Path(start).name} has other sizes or layers than this config; use its sizes, or "
            "leave start out"
        )
    return loaded.predictor.float().train()


def export(
    path: Path, network: Mapping[str, Any], weights: Mapping[str, Tensor], encoder: VisionEncoder, step: int
) -> None:
    """Write a predictor file in bfloat16 from averaged weights; one that the run has written before is replaced.

    `network`: {"base_model": id, and a QueryConfig as JSON}.
    """
    config = QueryConfig.from_json({k: v for k, v in network.items() if k != "base_model"})
    predictor = QueryNetwork(config, device="meta")
    predictor.load_state_dict(dict(weights), strict=True, assign=True)
    meta = {"base_model": {"id": network["base_model"]}, "about": {"steps": str(step)}}
    save_predictor(path, predictor.bfloat16(), encoder.bfloat16(), meta)
