"""`python -m i2l_core train CONFIG`: train a predictor for a base model, or continue a training that stopped.

On several GPUs: `accelerate launch --num_processes 8 -m i2l_core train CONFIG`. Documentation: docs/training.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import I2LError

if TYPE_CHECKING:
    from ..train.config import RunTable


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m i2l_core train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a .toml or .json config; examples are in i2l_core/train/configs")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--check", action="store_true", help="only check that every picture of the data set can be read"
    )
    only.add_argument(
        "--prepare", action="store_true", help="only compute and cache latents and text embeddings"
    )
    only.add_argument(
        "--export", action="store_true", help="only write the newest checkpoint as a predictor file"
    )
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except I2LError as error:
        sys.stderr.write(f"\ni2l train: {error}\n")
        return 1


def _run(options: argparse.Namespace) -> int:
    from ..train import session
    from ..train.config import HOST, load_config
    from ..train.demo_base import DemoBaseLoader

    config = load_config(options.config)
    if options.check:
        session.say(f"all {session.check_pictures(config)} pictures can be read")
        return 0
    if options.export:
        session.say(f"wrote {session.export_newest(config)}")
        return 0
    accelerator = _accelerator(config.run)
    base_loader: session.BaseLoader = DemoBaseLoader()
    if config.base.kind == HOST:
        from ..host.start import start_host

        start_host(cpu=accelerator.device.type == "cpu")
        from ..host.train.base import HostBaseLoader

        base_loader = HostBaseLoader()
    try:
        path = session.train(config, base_loader, accelerator, options.prepare)
    finally:
        accelerator.end_training()
    if path is not None:
        session.say(f"wrote {path}")
    return 0


def _accelerator(table: RunTable) -> Any:
    """Hugging Face's Accelerator, with the devices of this process and the precision."""
    try:
        import torch
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise I2LError(
            "training needs Hugging Face accelerate: pip install -r requirements-train.txt"
        ) from error
    cpu = table.device == "cpu" or not torch.accelerator.is_available()
    shared = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # or gradients are held twice
    accelerator = Accelerator(cpu=cpu, mixed_precision=table.precision, kwargs_handlers=[shared])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each would train alone, in the same folder
        raise I2LError(
            f"{started} processes were started, but accelerate sees {accelerator.num_processes}; start them with "
            "accelerate launch or torchrun"
        )
    return accelerator
