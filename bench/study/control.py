"""A small structure control for the demo world: ComfyUI's Z-Image Fun ControlNet, in the smallest size.

    python -m bench.study.variants control

It looks at a picture of where the figures are, white on black, and adds to the backbone's image tokens. The names of
its tensors are those of the host's `ZImage_Control`, in which `composition` runs it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from i2l_core.demo.backbone import Backbone, BackboneConfig, Block, patches_of
from i2l_core.demo.files import WEIGHTS, load_backbone
from i2l_core.train.demo_base import DemoBase
from i2l_core.train.demo_stages import structure
from i2l_core.train.demo_stages.backbone import is_hidden_matrix
from i2l_core.train.demo_stages.data import draw_pictures, draw_prompt, token_ids, train_pool
from i2l_core.train.demo_stages.run import StageRun
from i2l_core.train.flow import draw_sigmas, noisy, velocity
from i2l_core.train.plan import Plan

FOLDER = Path(".runs/control")
PLAN = Plan(steps=600, batch=32, lr=2e-3, seed=61, warmup=50, average=0.99)
_LAYERS = 3  # of control; the backbone has six, and every second one is told
_EVERY = 2
_REFINERS = 2  # the host's class has so many
_HOST_LAYERS = 30 // _EVERY  # the host counts in the full-size backbone's thirty


class ControlBlock(Block):
    """Control tokens and the backbone's (B, T, dim) -> (what to add to the backbone's, control tokens)."""

    def __init__(self, config: BackboneConfig, first: bool) -> None:
        super().__init__(config, True)
        if first:
            self.before_proj = nn.Linear(config.dim, config.dim)
        self.after_proj = nn.Linear(config.dim, config.dim)
        self.first = first

    def add(self, c: Tensor, image: Tensor, rope: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            c = self.before_proj(c) + image
        c = self(c, rope, t, {}, "")
        return self.after_proj(c), c


class Control(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        patch = config.patch_size**2 * config.in_channels
        self.control_all_x_embedder = nn.ModuleDict({"2-1": nn.Linear(patch, config.dim)})
        self.control_noise_refiner = nn.ModuleList(Block(config, True) for _ in range(_REFINERS))
        self.control_layers = nn.ModuleList(ControlBlock(config, i == 0) for i in range(_LAYERS))

    def start_from(self, backbone: Backbone) -> None:
        """Blocks that the backbone has already learned, and nothing added yet."""
        self.control_all_x_embedder["2-1"].load_state_dict(backbone.x_embedder.state_dict())
        for block in self.control_noise_refiner:
            block.load_state_dict(backbone.noise_refiner[0].state_dict())
        for i, block in enumerate(self.control_layers):
            learned = backbone.layers[_EVERY * i].state_dict()
            block.load_state_dict({**block.state_dict(), **learned})
            for name in ("before_proj", "after_proj"):
                if hasattr(block, name):
                    nn.init.zeros_(getattr(block, name).weight)
                    nn.init.zeros_(getattr(block, name).bias)

    def velocity(
        self, backbone: Backbone, x: Tensor, sigma: Tensor, context: Tensor, picture: Tensor
    ) -> Tensor:
        """As `Backbone.forward`, steered by the latents (B, C, H, W) of a picture of structure."""
        stream = backbone.enter(x, sigma, context, {})
        rope, both = stream.rope[:, stream.words :], stream.tokens
        entered = both[:, stream.words :]
        c = self.control_all_x_embedder["2-1"](patches_of(picture, backbone.config.patch_size))
        for block in self.control_noise_refiner:
            c = block(c, rope, stream.t, {}, "")
        for i, block in enumerate(backbone.layers):
            both = block(both, stream.rope, stream.t, {}, "")
            if i % _EVERY == 0:
                layer = cast(ControlBlock, self.control_layers[i // _EVERY])
                added, c = layer.add(c, entered, rope, stream.t)
                both = torch.cat([both[:, : stream.words], both[:, stream.words :] + added], 1)
        return backbone.leave(both, stream, x.shape, {})


def pictures_of(masks: Tensor) -> Tensor:
    """Covers (B, h, w) uint8 of figures -> what the control looks at, (B, 3, 2 h, 2 w) in 0..1."""
    return structure.pictures_of(masks).movedim(-1, 1)  # BHWC -> BCHW


def train(steps: int | None, compiled: bool = True) -> None:
    """The flow loss through the frozen backbone, half of the prompts empty, so that structure has to come from here."""
    torch.set_flush_denormal(True)
    torch.manual_seed(PLAN.seed)
    plan = replace(PLAN, steps=steps) if steps else PLAN
    backbone, text = load_backbone(WEIGHTS)
    for frozen in (backbone, text):
        frozen.requires_grad_(False)
    codec = DemoBase(WEIGHTS, torch.device("cpu"))
    pool = train_pool()
    control = Control(backbone.config)
    control.start_from(backbone)
    run = StageRun(FOLDER, plan, {"control": control}, is_hidden_matrix)
    steer = torch.compile(control.velocity) if compiled else control.velocity

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        pairs = list(zip(styles, rows, strict=True))
        prompts = [
            draw_prompt(pool.contents[s][r], pool.styles[s], rng) if rng.uniform() < 0.5 else ""
            for s, r in pairs
        ]
        clean = codec.encode(torch.from_numpy(pool.pictures[styles, rows]).float() / 255)
        seen = codec.encode(pictures_of(torch.from_numpy(pool.masks[styles, rows])).movedim(1, -1))
        noise = torch.randn(clean.shape, generator=generator)
        sigma = draw_sigmas(plan.batch, generator)
        found = steer(backbone, noisy(clean, noise, sigma), sigma, text(token_ids(prompts)), seen)
        return (found - velocity(clean, noise)).square().mean()

    run.train(loss)


def load_control() -> Control | None:
    """The trained control, or None when it has not been trained."""
    if not FOLDER.exists():
        return None
    control = Control(load_backbone(WEIGHTS)[0].config)
    StageRun(FOLDER, PLAN, {"control": control}, is_hidden_matrix).load_average()
    return control.eval().requires_grad_(False)


def in_host(control: Control, config: BackboneConfig) -> Any:
    """A ModelPatcher of the host's own class, for its `ZImageControlPatch`."""
    import comfy.model_management
    import comfy.ops
    from comfy.ldm.lumina.controlnet import ZImage_Control
    from comfy.model_patcher import CoreModelPatcher

    network = ZImage_Control(
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_heads,
        n_control_layers=_HOST_LAYERS,
        dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )
    network.control_layers = network.control_layers[:_LAYERS]
    network.load_state_dict(control.state_dict())
    management = comfy.model_management
    return CoreModelPatcher(
        network, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
