"""In the real host: a predicted LoRA in img2img, in inpainting (is the mask kept?), and under a structure control."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2l_core.demo.prompts import content_prompt
from tools.host import import_host

from .._world import Bench, predict
from ..fusion import single
from . import control

_DENOISE = (0.4, 0.6, 0.8, 1.0)
_SEED = 5
_CFG = 3.0
_BEYOND = (8, 16, 24)  # pixels from the mask: the decoder sees across its border, the sampling does not


def run(bench: Bench, steps: int) -> dict[str, Any]:
    """Every held-out style, restyling a real picture of the next one.

    img2img: style distance, and how often the picture still shows its content. Inpainting of the middle: the same
    inside; outside, the largest change of a latent, which must be none, and of a pixel, which falls with the distance
    because the decoder sees across the border (workflows composite, and then no pixel changes). Structure control,
    where `python -m bench.study.variants control` has trained it: the LoRA tells the style, a picture of where the
    figures are tells the content, with the prompt and without any.
    """
    found: dict[str, Any] = {"img2img": {}, "inpaint": {}}
    with tempfile.TemporaryDirectory() as folder:
        import_host(Path(folder))
        host = _Host(bench)
        others = bench.real.roll(-1, 0)  # a picture of another style, with a content of its own
        contents = [bench.targets[(i + 1) % bench.styles] for i in range(bench.styles)]
        latents = torch.cat([host.encode(picture) for picture in others])
        for denoise in _DENOISE:
            made = host.sample(latents, contents, steps, denoise, None)
            found["img2img"][f"{denoise:g}"] = _judged(bench, host.decode(made), contents)
        mask = torch.zeros(1, 128, 128)
        mask[:, 32:96, 32:96] = 1
        made = host.sample(latents, contents, steps, 1.0, mask)
        pictures, before = host.decode(made), host.decode(latents)
        outside = torch.nn.functional.interpolate(mask[None], made.shape[-2:], mode="area")[0] == 0
        found["inpaint"] = {
            "changed_latents_outside": float((made - latents).abs()[:, :, outside[0]].max()),
            **{
                f"changed_pixels_beyond_{n}": float((pictures - before).abs()[:, :, _far(mask, n)].max())
                for n in _BEYOND
            },
            "changed_pixels_inside": float((pictures - before).abs()[:, :, mask[0] > 0].mean()),
        }
        trained = control.load_control()
        if trained is not None:
            found["control"] = _controlled(bench, host, trained, steps)
    return found


def _controlled(bench: Bench, host: _Host, trained: control.Control, steps: int) -> dict[str, Any]:
    """Style distance, and how often the picture shows what the structure shows."""
    masks = torch.from_numpy(bench.pool.masks[:, bench.n_references].copy())
    seen = control.pictures_of(masks).permute(0, 2, 3, 1)
    patch = control.in_host(trained, bench.backbone.config)
    blank = torch.zeros(bench.styles, 16, 16, 16)
    found = {}
    for title, prompted, strength in (
        ("prompt", True, 0.0),
        ("no prompt", False, 0.0),
        ("prompt and structure", True, 1.0),
        ("structure, no prompt", False, 1.0),
    ):
        steered = None if strength == 0 else [host.steer(patch, picture[None], strength) for picture in seen]
        made = host.sample(blank, bench.targets, steps, 1.0, None, steered, prompted)
        found[title] = _judged(bench, host.decode(made), bench.targets)
    return found


class _Host:
    """The demo world in ComfyUI, and one LoRA for each style."""

    def __init__(self, bench: Bench) -> None:
        from i2l_core.host.demo.world import load_demo
        from i2l_core.host.patch import apply_merged

        self.world = load_demo()
        loras = {k: (d.cpu(), u.cpu()) for k, (d, u) in predict(bench.references).items()}
        self.models = [apply_merged(self.world.model, single(loras, i), 1.0) for i in range(bench.styles)]

    def encode(self, picture: Tensor) -> Tensor:
        return self.world.vae.encode(picture.permute(1, 2, 0)[None].cpu())

    def decode(self, latents: Tensor) -> Tensor:
        """(N, 3, H, W)"""
        return torch.cat([self.world.vae.decode(one[None]) for one in latents]).permute(0, 3, 1, 2)

    def steer(self, patch: Any, picture: Tensor, strength: float) -> Callable[[Any], Any]:
        """How a MODEL becomes one under structure control by a picture (1, H, W, 3).

        Not through the node: it also counts the picture's refiner blocks, of which the demo model has one and the full
        size two, and would be one block late.
        """
        from comfy_extras.nodes_model_patch import ZImageControlPatch

        def steered(model: Any) -> Any:
            clone = model.clone()
            clone.set_model_double_block_patch(ZImageControlPatch(patch, self.world.vae, picture, strength))
            return clone

        return steered

    def sample(
        self,
        latents: Tensor,
        contents: Any,
        steps: int,
        denoise: float,
        mask: Tensor | None,
        steered: Sequence[Callable[[Any], Any]] | None = None,
        prompted: bool = True,
    ) -> Tensor:
        """Each style's model on its latent (C, h, w) with its prompt, or with none."""
        import comfy.sample

        found = []
        models = self.models if steered is None else [s(m) for s, m in zip(steered, self.models, strict=True)]
        for model, latent, content in zip(models, latents, contents, strict=True):
            positive, negative = self._words(content_prompt(content) if prompted else ""), self._words("")
            noise = comfy.sample.prepare_noise(latent[None], _SEED)
            found.append(
                comfy.sample.sample(
                    model,
                    noise,
                    steps,
                    _CFG,
                    "euler",
                    "simple",
                    positive,
                    negative,
                    latent[None],
                    denoise=denoise,
                    noise_mask=mask,
                    seed=_SEED,
                    disable_pbar=True,
                )
            )
        return torch.cat(found)

    def _words(self, text: str) -> Any:
        return self.world.clip.encode_from_tokens_scheduled(self.world.clip.tokenize(text))


def _far(mask: Tensor, pixels: int) -> Tensor:
    """(H, W) bool: further than so many pixels from the mask (1, H, W)."""
    return torch.nn.functional.max_pool2d(mask[None], 2 * pixels + 1, 1, pixels)[0, 0] == 0


def _judged(bench: Bench, pictures: Tensor, contents: Any) -> dict[str, float]:
    figures = bench.judge(pictures.to(bench.device), contents).figures()
    return {"style_distance": figures["style_distance"], "content_kept": figures["prompt_accuracy"]}
