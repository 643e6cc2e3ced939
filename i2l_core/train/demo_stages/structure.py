"""Stage `structure`: a control template for the demo world's FLUX.2, as the published ones are built.

A second network of the same class looks at a picture of where the figures are, white on black, and at the prompt. The
keys and values of all its blocks are what the attentions of the frozen network see beside their own. It starts from
the frozen network's weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...demo import files
from ...demo.autoencoder import HOST_SCALE, HOST_SHIFT
from ...demo.flux2 import Extras, Flux2Backbone, Flux2Config
from ...kv_caches.dit import DitTemplate, host_name
from ..flow import draw_sigmas, noisy, velocity
from ..plan import Plan
from .backbone import pool_basis
from .data import draw_pictures, draw_prompt, latents_of, token_ids, train_pool
from .flux2 import is_hidden_matrix
from .run import StageRun

_NO_PROMPT = 0.4  # share of targets whose structure is said by the picture alone


def pictures_of(masks: Tensor) -> Tensor:
    """Covers (B, h, w) uint8 of figures -> what the control looks at, (B, 2 h, 2 w, 3) in 0..1."""
    return F.interpolate(masks[:, None].float() / 255, scale_factor=2).expand(-1, 3, -1, -1).movedim(1, -1)


def train(
    folder: Path, plan: Plan, network: Flux2Backbone, text: nn.Module, compiled: bool
) -> tuple[StageRun, Flux2Backbone]:
    """The flow loss through the frozen network."""
    pool, basis = train_pool(), pool_basis()
    latents = latents_of(pool, basis)
    network.requires_grad_(False)
    text.requires_grad_(False)
    control = Flux2Backbone(network.config)
    control.load_state_dict(network.state_dict())
    control.img_in.weight.data *= HOST_SCALE  # it looks at latents as the VAE gives them
    for unused in (control.final_layer, control.single_blocks[-1].linear2):
        unused.requires_grad_(False)
    run = StageRun(folder, plan, {"control": control}, is_hidden_matrix)

    def steer(x: Tensor, sigma: Tensor, context: Tensor, picture: Tensor) -> Tensor:
        return network(x, sigma, context, Extras(cache=control.keys_values(picture, context)))

    if compiled:
        steer = torch.compile(steer)

    def loss(step: int) -> Tensor:
        rng, generator = run.generator(step)
        styles, rows = draw_pictures(pool, plan.batch, rng)
        pairs = zip(styles, rows, strict=True)
        prompts = [
            "" if rng.uniform() < _NO_PROMPT else draw_prompt(pool.contents[s][r], pool.styles[s], rng)
            for s, r in pairs
        ]
        clean = latents[styles, rows].float()
        seen = basis.encode(pictures_of(torch.from_numpy(pool.masks[styles, rows]))) / HOST_SCALE + HOST_SHIFT
        noise = torch.randn(clean.shape, generator=generator)
        sigma = draw_sigmas(plan.batch, generator)
        found = steer(noisy(clean, noise, sigma), sigma, text(token_ids(prompts)), seen)
        return (found - velocity(clean, noise)).square().mean()

    run.train(loss)
    return run, control


def save(folder: Path, control: Flux2Backbone) -> Path:
    """As the published ones are; matrices as 8 bit floats, which is how large ones are used too."""
    c = control.config
    sizes = DitTemplate(
        c.hidden_size, c.head_dim, c.mlp, c.depth, c.depth_single_blocks, c.patch, c.context_in_dim
    )
    tensors, learned = {}, control.state_dict()
    for name, shape in sizes.shapes().items():
        host = host_name(name)
        tensor = torch.zeros(shape) if host is None else learned[host].detach()  # the output is not used
        tensors[name] = tensor.to(torch.float8_e4m3fn if tensor.ndim == 2 else torch.bfloat16).contiguous()
    path = folder / files.STRUCTURE
    save_file(tensors, path)
    return path


def load(folder: Path) -> Flux2Backbone:
    """The training-side network in float32, to be sampled without the host. Raises ValueError for a file that lacks
    more than the output, which is not used and not kept."""
    tensors = load_file(folder / files.STRUCTURE)
    found = {host: tensor.float() for name, tensor in tensors.items() if (host := host_name(name))}
    network = Flux2Backbone(Flux2Config())
    missing, unknown = network.load_state_dict(found, strict=False)
    if unknown or any(not name.startswith("final_layer.") for name in missing):
        raise ValueError(f"{files.STRUCTURE} is of another network: train the stage again")
    return network.eval()
