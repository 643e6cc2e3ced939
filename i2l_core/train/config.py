"""The tables of a training config. Paths are relative to the working directory."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checks import listed
from ..demo.files import BACKBONE, WEIGHTS
from ..errors import I2LError
from ..files.fingerprint import content_fingerprint
from .parse import build, read_table
from .plan import Plan

TINY_WORLD, HOST = "tiny-world", "host"
GENERATOR, FOLDER, SHARDS = "tiny-world", "folder", "shards"
PIXEL_SPACE = "pixel_space"  # the VAE of models that draw in pixels, as Load VAE calls it
ENCODER_WEIGHTS = "model.safetensors"

DTYPES = ("stored", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class BaseTable:
    """[base]: the frozen base model that LoRAs are predicted for."""

    kind: str  # TINY_WORLD: the backbone of the demo, without ComfyUI; HOST: any model that ComfyUI loads
    weights: str = ""  # TINY_WORLD: folder of its weights; empty: those of the pack
    model: str = ""  # HOST: file of the diffusion model
    vae: str = ""  # HOST: file, or PIXEL_SPACE; may be left out where the data has latents
    text_encoders: tuple[str, ...] = ()  # HOST: files; may be left out where the data has text embeddings
    # HOST: what ComfyUI's Load CLIP node calls the kind: "lumina2", "flux2", "hidream_o1", ...
    text_type: str = ""
    dtype: str = "stored"  # HOST: of the frozen weights
    id: str = ""  # of a model that the pack does not know, as predictor files name it
    checkpointing: bool = True  # compute activations of a block again in the backward pass, to save memory
    # TINY_WORLD: with torch.compile, half again as fast once compiled; not with checkpointing
    compile: bool = False

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, (TINY_WORLD, HOST))
        _one_of("dtype", self.dtype, DTYPES)
        if self.kind == HOST and not self.model:
            raise I2LError(f'kind = "{HOST}" needs model, the file of the diffusion model')
        if self.text_encoders and not self.text_type:
            raise I2LError("text_encoders need text_type, the type that ComfyUI's Load CLIP node shows")
        if self.compile and (self.kind == HOST or self.checkpointing):
            raise I2LError(f'compile is for kind = "{TINY_WORLD}" without checkpointing')


@dataclass(frozen=True)
class EncoderTable:
    """[encoder]: the frozen vision encoder of the predictor."""

    # a predictor file, whose encoder is taken, or a folder with config.json and model.safetensors
    source: str
    max_patches: int = 0  # NaFlex encoders: most patches of a picture; 0: as its config says
    batch: int = 8  # pictures encoded at once

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_patches < 0:
            raise I2LError(
                f"expected batch >= 1 and max_patches >= 0, got {self.batch} and {self.max_patches}"
            )


@dataclass(frozen=True)
class PredictorTable:
    """[predictor]: sizes as `predictors.query.QueryConfig` has them, and which layers it adapts."""

    hidden: int
    blocks: int
    heads: int
    code: int
    rank: int
    mlp_ratio: float = 4.0
    alpha: float = 1.0
    layers: tuple[str, ...] = ("*",)  # shell patterns of the base model's layer names
    split_fused: bool = False  # q, k and v of a fused weight as layers of their own, as diffusers has them
    start: str = ""  # a predictor file to go on from, for a new run


@dataclass(frozen=True)
class DataTable:
    """[data]: pictures, their style and their prompts."""

    kind: str  # GENERATOR: the pool of the demo world; FOLDER: .jsonl and pictures; SHARDS: .tar in WebDataset's form
    # FOLDER: the .jsonl file; SHARDS: the folder of the .tar files; GENERATOR: where the pool is kept
    path: str = ""
    height: int = 128  # of targets, in pixels; other pictures are scaled to cover and cropped
    width: int = 128
    # fraction of the styles that training never sees, for measurements and sample sheets
    unseen: float = 0.02
    small_styles: str = "refuse"  # a style of less than two contents: "refuse", or "drop" it and say how many
    cache: str = ""  # folder for latents and text embeddings; empty: beside the run
    workers: int = 0  # processes that decode pictures
    styles: int = 6000  # GENERATOR: size of the pool
    per_style: int = 8
    pool_seed: int = 1

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, (GENERATOR, FOLDER, SHARDS))
        _one_of("small_styles", self.small_styles, ("refuse", "drop"))
        if self.kind != GENERATOR and not self.path:
            raise I2LError(f'kind = "{self.kind}" needs path')
        if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
            raise I2LError(
                f"height and width must be positive multiples of 16, got {self.height}x{self.width}"
            )
        if not 0 <= self.unseen < 1 or self.workers < 0 or self.styles < 1:
            raise I2LError("expected unseen in 0..1, workers >= 0 and styles >= 1")


@dataclass(frozen=True)
class PairingTable:
    """[pairing]: how references and targets are drawn (paper, section 3.3)."""

    targets: int = 1  # noisy targets of each predicted LoRA
    most_references: int = 4
    # fraction of predictions from one reference; the others draw 1..most_references evenly
    single: float = 0.25
    gray: float = 0.04  # fraction of predictions from gray pictures only, with targets of any style
    # fraction of predictions whose targets show what a reference shows: for ablations
    same_content: float = 0.0
    # fraction of targets without a prompt, so that both sides of guidance know the LoRA
    empty_prompts: float = 0.1

    def __post_init__(self) -> None:
        if self.targets < 1 or self.most_references < 1:
            raise I2LError("targets and most_references must be 1 or more")
        for name in ("single", "gray", "same_content", "empty_prompts"):
            if not 0 <= getattr(self, name) <= 1:
                raise I2LError(f"{name} must be a fraction from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class OptimiserTable:
    """[optimiser]"""

    kind: str = "adamw"  # or "muon" for the matrices inside blocks, which cannot be sharded
    beta: float = 0.999  # of AdamW's second moment that is kept
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, ("adamw", "muon"))
        if not self.clip > 0 or not 0 <= self.beta < 1:
            raise I2LError(f"expected clip above 0 and beta in 0..1, got {self.clip} and {self.beta}")


@dataclass(frozen=True)
class RunTable:
    """[run]: where and how it runs. Apart from `precision` nothing here changes what is learned."""

    folder: str  # checkpoints, logs, sheets, and the predictor file at the end
    micro_batch: int = 1  # styles at once on each device; [plan] batch is reached by accumulation
    device: str = "auto"  # or "cpu"
    precision: str = "no"  # of the predictor's products: "no" (float32) or "bf16"; its weights stay float32
    sharding: str = "none"  # or "fsdp": the predictor, its gradients and optimiser spread over the devices
    keep: int = 2  # checkpoints kept, the newest
    measure_every: int = 500  # steps between measurements on unseen styles; 0: never
    sheet_every: int = 0  # steps between sample sheets; 0: never
    sheet_styles: int = 4
    sheet_steps: int = 20  # of sampling
    sheet_cfg: float = 4.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not self.folder:
            raise I2LError("folder must name a folder for this run")
        _one_of("device", self.device, ("auto", "cpu"))
        _one_of("precision", self.precision, ("no", "bf16"))
        _one_of("sharding", self.sharding, ("none", "fsdp"))
        for name, low in (("micro_batch", 1), ("keep", 1), ("measure_every", 0), ("sheet_every", 0)):
            if getattr(self, name) < low:
                raise I2LError(f"{name} must be {low} or more, got {getattr(self, name)}")
        if self.sheet_styles < 1 or self.sheet_steps < 1:
            raise I2LError("sheet_styles and sheet_steps must be 1 or more")


@dataclass(frozen=True)
class TrainConfig:
    """A whole config file. [plan] is `train.run.Plan`; its batch counts styles over all devices."""

    base: BaseTable
    encoder: EncoderTable
    predictor: PredictorTable
    data: DataTable
    plan: Plan
    run: RunTable
    pairing: PairingTable = field(default_factory=PairingTable)
    optimiser: OptimiserTable = field(default_factory=OptimiserTable)

    def __post_init__(self) -> None:
        if self.optimiser.kind == "muon" and self.run.sharding == "fsdp":
            raise I2LError(
                '[optimiser] kind = "muon" needs whole matrices: use "adamw" with sharding = "fsdp"'
            )

    @property
    def folder(self) -> Path:
        return Path(self.run.folder)

    def fixed(self) -> dict[str, Any]:
        """The settings that must match to resume from a checkpoint, as JSON values.

        Left out is what changes no result: where and how it runs, and [plan] steps, so that a run can be made
        longer. Files count by what is in them and not by their paths.
        """
        tables = json.loads(json.dumps(asdict(self)))
        tables["run"] = {"precision": self.run.precision}
        for table, names in _FREE.items():
            for name in names:
                del tables[table][name]
        tables["files"] = {name: content_fingerprint(path) for name, path in self._files().items()}
        return tables

    def _files(self) -> dict[str, Path]:
        """Files whose content decides the result, apart from the data."""
        base, source = self.base, Path(self.encoder.source)
        files = {"encoder": source / ENCODER_WEIGHTS if os.path.isdir(source) else source}
        if base.kind == HOST:
            files["base model"] = Path(base.model)
            files |= {f"text encoder {n}": Path(path) for n, path in enumerate(base.text_encoders)}
            if base.vae not in ("", PIXEL_SPACE):
                files["vae"] = Path(base.vae)
        else:
            files["base model"] = Path(base.weights or WEIGHTS) / BACKBONE
        if self.predictor.start:
            files["predictor start"] = Path(self.predictor.start)
        return files


_FREE = {
    "base": ("checkpointing", "compile", "model", "weights", "vae", "text_encoders"),
    "encoder": ("batch", "source"),
    "predictor": ("start",),
    "data": ("cache", "workers", "path"),
    "plan": ("steps", "save_every"),
}


def load_config(path: str | Path) -> TrainConfig:
    """Raises I2LError naming file, table and entry."""
    path = Path(path)
    table = read_table(path)
    try:
        return build(TrainConfig, table)
    except I2LError as error:
        raise I2LError(f"{path.name}: {error}") from error


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """ "plan.lr is 0.1, was 0.2" for every value that two `fixed()` differ in."""
    return [
        f"{table}.{name} is {config.get(table, {}).get(name)!r}, was {other.get(table, {}).get(name)!r}"
        for table in sorted(config.keys() | other.keys())
        for name in sorted(config.get(table, {}).keys() | other.get(table, {}).keys())
        if config.get(table, {}).get(name) != other.get(table, {}).get(name)
    ]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise I2LError(f"{name} must be one of {listed(known)}, got {value!r}")
