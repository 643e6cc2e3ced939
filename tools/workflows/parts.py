"""Parts that several workflows have: the demo model, references, prompts, a picture drawn and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .graph import FIRST, NEGATIVE, PLAIN, POSITIVE, Look, Node, Socket, Workflow

PICTURE = 250  # width of a node that loads a picture
CARD = 130  # pixels below a node, for the card that it shows after a run
DEMO_STEPS, DEMO_CFG = 20, 3.0
PREVIEW = 132  # pixels that a sampler grows with its preview
ROW = 440  # from the top of one row of results to that of the next, with the preview


@dataclass(frozen=True)
class World:
    """What pictures are drawn with."""

    model: Socket
    clip: Socket
    vae: Socket
    predictor: Socket


def demo(flow: Workflow, look: Look = PLAIN) -> World:
    node = flow.add("LoadI2LDemo", replace(look, height=106))
    return World(node["model"], node["clip"], node["vae"], node["predictor"])


def references(flow: Workflow, *files: str, columns: int = 2, first: int = 1) -> list[Socket]:
    """Pictures that ship, side by side in the columns of the group."""
    return [
        flow.picture(file, Look(f"Reference {first + i}", column=i % columns))["image"]
        for i, file in enumerate(files)
    ]


def predicted(flow: Workflow, predictor: Socket, pictures: Sequence[Socket], look: Look = PLAIN) -> Node:
    return flow.add("ImagesToLoRA", replace(look, room=CARD), predictor=predictor, images=pictures)


def applied(flow: Workflow, model: Socket, lora: Socket, look: Look = PLAIN, **inputs: float) -> Socket:
    look = replace(look, room=CARD)
    return flow.add("ApplyPredictedLoRA", look, model=model, lora=lora, **inputs)["model"]


def texts(
    flow: Workflow, clip: Socket, words: str | Socket, without: str = "", negative: bool = True
) -> tuple[Socket, Socket]:
    """The prompts, green and red; without the negative one the first stands for both."""
    look = Look("Draw this", height=120, colors=POSITIVE)
    wanted = flow.add("CLIPTextEncode", look, clip=clip, text=words)["conditioning"]
    if not negative:
        return wanted, wanted
    look = Look("Avoid this", height=100, colors=NEGATIVE)
    return wanted, flow.add("CLIPTextEncode", look, clip=clip, text=without)["conditioning"]


def square(flow: Workflow, side: int = 128) -> Socket:
    return flow.add("EmptySD3LatentImage", width=side, height=side, batch_size=1)["latent"]


def seed(flow: Workflow, value: int, title: str = "Seed for all") -> Socket:
    return flow.add("PrimitiveInt", Look(title), value=value)["int"]


def sampled(
    flow: Workflow,
    model: Socket,
    prompts: tuple[Socket, Socket],
    latent: Socket,
    seed: Socket | int,
    look: Look = PLAIN,
    steps: int = DEMO_STEPS,
    cfg: Socket | float = DEMO_CFG,
    sampler: str = "euler",
    denoise: float = 1.0,
) -> Socket:
    node = flow.add(
        "KSampler",
        look,
        model=model,
        positive=prompts[0],
        negative=prompts[1],
        latent_image=latent,
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler,
        scheduler="simple",
        denoise=denoise,
    )
    return node["latent"]


def decoded(flow: Workflow, latent: Socket, vae: Socket, look: Look = PLAIN) -> Socket:
    """Not right below its sampler, which shows its preview there."""
    return flow.add("VAEDecode", look, samples=latent, vae=vae)["image"]


def top_of(row: int) -> float:
    """Of a row of results."""
    return FIRST + row * ROW
