"""Run a training from its config: open the data, encode it, build the predictor, train and export it."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from ..checks import listed
from ..errors import I2LError
from ..files.fingerprint import content_fingerprint
from .base import Base, LatentCodec
from .checkpoints import Checkpoints
from .config import (
    FOLDER,
    GENERATOR,
    HOST,
    PIXEL_SPACE,
    SHARDS,
    BaseTable,
    DataTable,
    TrainConfig,
)
from .data.cache import EncodingCache
from .data.data_set import DataSet, data_fingerprint, split_styles
from .data.encoded import EncodedData
from .data.folder import open_folder
from .data.shards import open_shards
from .demo_data import open_generated
from .encoder import load_encoder
from .predictor import export, new_predictor, query_config
from .training import Training

PREDICTOR = "predictor.safetensors"


class BaseLoader(Protocol):
    """How the base model of a config is opened. ComfyUI's is in `host/train/base.py`, and is handed in."""

    def codec(self, table: BaseTable, device: torch.device) -> LatentCodec: ...

    def base(
        self, table: BaseTable, device: torch.device, split_fused: bool
    ) -> contextlib.AbstractContextManager[Base]: ...


def train(
    config: TrainConfig, base_loader: BaseLoader, accelerator: Any, only_prepare: bool = False
) -> Path | None:
    """Train to the last step, resuming from the newest checkpoint. Returns the predictor file in the main process.

    Raises I2LError naming what is wrong with config, data, base model, encoder or disk.
    """
    torch.set_flush_denormal(True)  # dying activations must not slow a CPU down
    device, main = accelerator.device, accelerator.is_main_process
    with accelerator.main_process_first():  # a generated pool is rendered once
        data = open_data(config.data)
    styles, unseen, dropped = split_styles(data, config.data.unseen, config.data.small_styles)
    if main:
        say(
            f"{len(data.pictures)} pictures, {len(styles.names)} styles to train on, "
            f"{len(unseen.names) if unseen else 0} unseen, {dropped} dropped"
        )
    codec = base_loader.codec(config.base, device)
    for prompt, name in {picture.prompt: picture.name for picture in data.pictures}.items():
        codec.check_prompt(prompt, name)
    encoded = open_encoded(config, data)
    if encoded.cache is not None:
        used = [i for side in (styles, unseen) if side for indices in side.members for i in indices]
        process = accelerator.process_index, accelerator.num_processes
        encoded.prepare(codec, used, process, _needs_empty(config), _progress if main else _silent)
        codec.release()
        accelerator.wait_for_everyone()
    if only_prepare:
        return None
    encoder = load_encoder(config.encoder)
    with base_loader.base(config.base, device, config.predictor.split_fused) as base:
        query = query_config(config.predictor, base.layers, encoder.config.token_dim)
        fixed = config.fixed() | {
            "data rows": {"fingerprint": data_fingerprint(data.pictures)},
            "network": {"base_model": base.id, **query.to_json()},
        }
        checkpoints = Checkpoints(config.folder / "checkpoints", _json(fixed), config.run.keep, main)
        predictor = new_predictor(query, config.predictor.start, config.plan.seed)
        if main:
            parameters = sum(p.numel() for p in predictor.parameters())
            say(
                f"{base.id}: {len(query.layers)} adapted layers, a predictor of {parameters / 1e6:.1f} M parameters"
            )
            config.folder.mkdir(parents=True, exist_ok=True)
        Training(
            config, accelerator, base, codec, encoder, predictor, styles, unseen, encoded, checkpoints
        ).run()
    return export_newest(config) if main else None


def open_data(table: DataTable) -> DataSet:
    if table.kind == GENERATOR:
        return open_generated(table)
    return {FOLDER: open_folder, SHARDS: open_shards}[table.kind](table.path)


def open_encoded(config: TrainConfig, data: DataSet) -> EncodedData:
    table = config.data
    if config.base.kind != HOST:
        return EncodedData(data, table.height, table.width)
    base = config.base
    vae = content_fingerprint(Path(base.vae)) if base.vae not in ("", PIXEL_SPACE) else base.vae
    text = " ".join([base.text_type, *(content_fingerprint(Path(file)) for file in base.text_encoders)])
    cache = EncodingCache(Path(table.cache) if table.cache else config.folder / "cache")
    # pixels are larger than pictures, and made in no time
    return EncodedData(data, table.height, table.width, cache, None if vae == PIXEL_SPACE else vae, text)


def check_pictures(config: TrainConfig, most: int = 20) -> int:
    """Decode every picture of the data set; how many there are. Raises I2LError naming up to `most` broken ones."""
    data = open_data(config.data)
    split_styles(data, config.data.unseen, config.data.small_styles)
    broken = []
    for index in range(len(data.pictures)):
        try:
            data.open(index)
        except I2LError as error:
            broken.append(str(error))
        _progress("pictures", index + 1, len(data.pictures))
    if broken:
        raise I2LError(f"{len(broken)} of {len(data.pictures)} pictures are broken: {listed(broken, most)}")
    return len(data.pictures)


def export_newest(config: TrainConfig) -> Path:
    """Write the averaged weights of the newest checkpoint as a predictor file into the run's folder."""
    checkpoints = Checkpoints(config.folder / "checkpoints", {}, config.run.keep, True)
    step, network, weights = checkpoints.read_average()
    path = config.folder / PREDICTOR
    export(path, network, weights, load_encoder(config.encoder), step)
    return path


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _needs_empty(config: TrainConfig) -> bool:
    return config.pairing.empty_prompts > 0 or (config.run.sheet_every > 0 and config.run.sheet_cfg != 1)


def _progress(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r{what}: {done}/{total} ")
    if done == total:
        sys.stderr.write("\n")
    sys.stderr.flush()


def _silent(what: str, done: int, total: int) -> None:
    pass


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples become lists."""
    return json.loads(json.dumps(value))
