"""`python -m i2l_core.train.demo_stages STAGE [--preset cpu|gpu] [--steps N] [--export]`, from the repository's root.

Stages in order: pool, vision, judge, backbone, decoder; then flux2, which learns from the backbone, and what is for it:
flux2_predictor, structure, brightness; and infinity_vae, infinity. Each resumes from `.runs/STAGE`, writes its losses
to `.runs/STAGE/log.csv`, and with --export writes its weights into `i2l_core/demo/weights` (vision: into its run's
folder). The predictor is trained as any other: `python -m i2l_core train i2l_core/train/configs/tiny-world.toml`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...demo import files
from ...demo.backbone import BackboneConfig
from ...demo.flux2 import Flux2Config
from ..encoder import save_encoder
from ..plan import Plan
from . import (
    backbone,
    brightness,
    data,
    decoder,
    flux2,
    flux2_predictor,
    infinity,
    infinity_vae,
    structure,
    vision,
)

RUNS = Path(".runs")


@dataclass(frozen=True)
class Preset:
    """Sizes and plans of all stages."""

    backbone: BackboneConfig
    plans: dict[str, Plan]


PRESETS = {
    "cpu": Preset(
        BackboneConfig(),
        {
            "vision": Plan(steps=600, batch=64, lr=2e-3, seed=21),
            "judge": Plan(steps=700, batch=64, lr=2e-3, seed=31, weight_decay=0.0),
            "backbone": Plan(steps=1600, batch=64, lr=4e-3, seed=11),
            "decoder": Plan(steps=700, batch=12, lr=1.5e-3, seed=41, weight_decay=0.0, save_every=100),
            "flux2": Plan(steps=2000, batch=64, lr=4e-3, seed=61, average=0.995),
            "flux2_predictor": Plan(
                steps=800, batch=8, lr=2e-3, seed=71, warmup=40, average=0.99, save_every=100
            ),
            "structure": Plan(steps=500, batch=48, lr=2e-3, seed=72, warmup=40, average=0.99, save_every=100),
            "brightness": Plan(
                steps=260,
                batch=32,
                lr=3e-3,
                seed=73,
                warmup=40,
                weight_decay=0.0,
                average=0.99,
                save_every=100,
            ),
            "infinity_vae": Plan(
                steps=1450, batch=16, lr=4e-3, seed=81, weight_decay=0.0, average=0.995, save_every=100
            ),
            "infinity": Plan(steps=2800, batch=32, lr=4e-3, seed=82, average=0.998, save_every=100),
        },
    ),
    "gpu": Preset(
        BackboneConfig(),
        {
            "vision": Plan(steps=4000, batch=256, lr=2e-3, seed=21),
            "judge": Plan(steps=6000, batch=256, lr=2e-3, seed=31, weight_decay=0.0),
            "backbone": Plan(steps=40000, batch=256, lr=2e-3, seed=11, average=0.9995),
            "decoder": Plan(steps=20000, batch=64, lr=1.5e-3, seed=41, weight_decay=0.0),
            "flux2": Plan(steps=20000, batch=256, lr=2e-3, seed=61, average=0.9995),
            "flux2_predictor": Plan(steps=6000, batch=32, lr=1e-3, seed=71, average=0.998),
            "structure": Plan(steps=6000, batch=128, lr=1e-3, seed=72, average=0.998),
            "brightness": Plan(steps=3000, batch=128, lr=2e-3, seed=73, weight_decay=0.0, average=0.998),
            "infinity_vae": Plan(steps=20000, batch=64, lr=3e-3, seed=81, weight_decay=0.0),
            "infinity": Plan(steps=40000, batch=256, lr=2e-3, seed=82, average=0.9995),
        },
    ),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m i2l_core.train.demo_stages", description=__doc__)
    parser.add_argument("stage", choices=["pool", *PRESETS["cpu"].plans])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument(
        "--steps", type=int, help="another number of steps; the fall of the learning rate moves with it"
    )
    parser.add_argument("--export", action="store_true", help="write the averaged weights into the pack")
    parser.add_argument(
        "--from-shipped",
        action="store_true",
        help="a new run goes on from the weights in the pack (backbone and decoder; the others take minutes)",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="do without torch.compile, for machines that lack a compiler",
    )
    options = parser.parse_args(argv)
    torch.set_flush_denormal(True)  # dying activations must not slow the CPU down
    preset = PRESETS[options.preset]
    if options.stage == "pool":
        for pool in (data.train_pool, data.test_pool, data.judge_pool):
            pool()
        return
    plan = preset.plans[options.stage]
    plan = replace(plan, steps=options.steps) if options.steps else plan
    _STAGES[options.stage](preset, plan, options)


def _vision(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    run, encoder = vision.train_encoder(RUNS / "vision", plan)
    if options.export:
        run.load_average()
        _report(save_encoder(run.folder / "encoder", encoder))


def _judge(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    run, judge = vision.train_judge(RUNS / "judge", plan)
    if options.export:
        run.load_average()
        _report(files.save_judge(files.WEIGHTS, judge))


def _backbone(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    start = files.load_backbone() if options.from_shipped else None
    compiled = not options.no_compile
    run, net, text = backbone.train(RUNS / "backbone", plan, preset.backbone, compiled, start)
    if options.export:
        run.load_average()
        _report(files.save_backbone(files.WEIGHTS, net, text))


def _decoder(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    basis = backbone.pool_basis()
    start = files.load_vae()[1] if options.from_shipped else None
    run, net = decoder.train(RUNS / "decoder", plan, basis, start)
    if options.export:
        run.load_average()
        _report(files.save_vae(files.WEIGHTS, basis, net))


def _flux2(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    run, network = flux2.train(RUNS / "flux2", plan, Flux2Config(), not options.no_compile)
    if options.export:
        run.load_average()
        _report(files.save_flux2(files.WEIGHTS, network))


def _flux2_predictor(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    network = files.load_flux2()
    run, predictor = flux2_predictor.train(RUNS / "flux2_predictor", plan, network, not options.no_compile)
    if options.export:
        run.load_average()
        _report(flux2_predictor.save(files.WEIGHTS, predictor, run.step))


def _structure(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    network, (_, text) = files.load_flux2(), files.load_backbone()
    run, control = structure.train(RUNS / "structure", plan, network, text, not options.no_compile)
    if options.export:
        run.load_average()
        _report(structure.save(files.WEIGHTS, control))


def _brightness(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    network, (_, text) = files.load_flux2(), files.load_backbone()
    run, template = brightness.train(RUNS / "brightness", plan, network, text)
    if options.export:
        run.load_average()
        _report(brightness.save(files.WEIGHTS, template))


def _infinity_vae(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    run, coder = infinity_vae.train(RUNS / "infinity_vae", plan)
    if options.export:
        run.load_average()
        _report(files.save_infinity_vae(files.WEIGHTS, coder))


def _infinity(preset: Preset, plan: Plan, options: argparse.Namespace) -> None:
    run, network = infinity.train(RUNS / "infinity", plan, not options.no_compile)
    if options.export:
        run.load_average()
        _report(files.save_infinity(files.WEIGHTS, network))


def _report(path: Path) -> None:
    sys.stderr.write(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n")


_STAGES = {
    "vision": _vision,
    "judge": _judge,
    "backbone": _backbone,
    "decoder": _decoder,
    "flux2": _flux2,
    "flux2_predictor": _flux2_predictor,
    "structure": _structure,
    "brightness": _brightness,
    "infinity_vae": _infinity_vae,
    "infinity": _infinity,
}

if __name__ == "__main__":
    main()
