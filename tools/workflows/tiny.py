"""Workflows on the demo model: they run anywhere, without a download."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .graph import AMBER, BLUE, GREEN, PLAIN, POSITIVE, PURPLE, Look, Socket, Workflow
from .parts import (
    CARD,
    PICTURE,
    PREVIEW,
    World,
    applied,
    decoded,
    demo,
    predicted,
    references,
    sampled,
    seed,
    square,
    texts,
    top_of,
)

EXAMPLES = "(examples of i2L)"


def start_here(flow: Workflow) -> None:
    flow.group("1  References: pictures of one style", BLUE, PICTURE, PICTURE)
    pictures = references(flow, *(f"neon_{i}.png" for i in (1, 2, 3, 4)))
    flow.group("2  Pictures to LoRA, LoRA to model", GREEN, 300)
    world = demo(flow)
    lora = predicted(flow, world.predictor, pictures)
    model = applied(flow, world.model, lora["lora"])
    flow.group("3  What to draw", AMBER, 310)
    prompts = texts(flow, world.clip, "two fish on the left")
    latent = square(flow)
    same = seed(flow, 7, "Seed for both")
    flow.group("4  The same prompt and seed, without the style and with it", PURPLE, 290, 440)
    pictures = []
    for one, title in ((world.model, "Without the style"), (model, "With the style")):
        drawn = sampled(flow, one, prompts, latent, same, Look(title, room=PREVIEW))
        pictures.append(decoded(flow, drawn, world.vae))
    pair = {"image1": pictures[0], "image2": pictures[1], "direction": "right", "match_image_size": True}
    both = flow.add("ImageStitch", Look(column=1), **pair, spacing_width=8, spacing_color="white")["image"]
    scale = {"upscale_method": "nearest-exact", "scale_by": 4.0}
    large = flow.add("ImageScaleBy", Look("Four times as large, for the eye", 1), image=both, **scale)[
        "image"
    ]
    flow.add("PreviewImage", Look("Without, with", 1, height=340), images=large)
    flow.add("SaveImage", Look(column=1, height=340), images=pictures[1], filename_prefix="i2l")


def many_references(flow: Workflow) -> None:
    flow.group("1  Pictures of one style", BLUE, PICTURE, PICTURE)
    first, second, third = references(flow, *(f"neon_{i}.png" for i in (1, 2, 3)))
    page = flow.picture("page.png", Look("Reference 4: with a border", column=1))["image"]
    flow.group("2  How much each counts", BLUE, PICTURE)
    mask = flow.picture(
        "page_mask.png", Look("White: look here", height=318), "LoadImageMask", channel="red"
    )["mask"]
    twice = flow.add("StyleReference", Look("Counts double", room=60), image=third, weight=2.0)["reference"]
    part = flow.add("StyleReference", Look("Only a part", room=60), image=page, weight=1.0, mask=mask)[
        "reference"
    ]
    flow.group("3  One LoRA from all, one from one", GREEN, 300)
    world = demo(flow)
    every = predicted(flow, world.predictor, [first, second, twice, part], Look("From four pictures"))
    one = predicted(flow, world.predictor, [page], Look("From the page alone"))
    flow.group("4  What to draw", AMBER, 310)
    prompts = texts(flow, world.clip, "one mushroom in the middle")
    latent = square(flow)
    same = seed(flow, 7, "Seed for both")
    flow.group("5  The same prompt and seed", PURPLE, 290, 280, 280)
    for i, (lora, title) in enumerate(((every, "All four"), (one, "The page alone"))):
        _result(flow, world, lora["lora"], prompts, latent, same, i, title)


def tone_only(flow: Workflow) -> None:
    flow.group("1  Pictures with the colours", BLUE, PICTURE)
    neon = flow.picture("neon_1.png", Look("Tone A"))["image"]
    blueprint = flow.picture("blueprint_1.png", Look("Tone B"))["image"]
    flow.group("2  What to draw", AMBER, 310)
    world = demo(flow)
    prompts = texts(flow, world.clip, "two stars in the middle")
    latent = square(flow)
    same = seed(flow, 7)
    flow.group("3  The same prompt and seed", PURPLE, 290, 280, 280)
    for row, (image, title) in enumerate(
        ((None, "The prompt alone"), (neon, "Tone of A"), (blueprint, "Tone of B"))
    ):
        look = Look(y=top_of(row))
        model = world.model
        if image is not None:
            parts = {"model": model, "vae": world.vae, "image": image}
            model = flow.add("StyleToneBlend", replace(look, room=CARD), **parts)["model"]
        drawn = sampled(flow, model, prompts, latent, same, replace(look, column=1))
        _drawn(flow, world, drawn, look, title)


def fuse_styles(flow: Workflow) -> None:
    flow.group("1  Style A", BLUE, PICTURE)
    neon = references(flow, "neon_1.png", "neon_4.png", columns=1)
    flow.group("2  Style B", BLUE, PICTURE)
    glass = references(flow, "glass_1.png", "glass_4.png", columns=1, first=3)
    flow.group("3  A LoRA of each, and their mix", GREEN, 300)
    world = demo(flow)
    a = predicted(flow, world.predictor, neon, Look("LoRA of style A"))["lora"]
    b = predicted(flow, world.predictor, glass, Look("LoRA of style B"))["lora"]
    mixed = _fused(flow, a, b, (0.8, 0.6), "concat")
    flow.group("4  What to draw", AMBER, 310)
    prompts = texts(flow, world.clip, "two stars in the middle")
    latent = square(flow)
    same = seed(flow, 7)
    flow.group("5  The same prompt and seed", PURPLE, 290, 280, 280)
    for i, (lora, title) in enumerate(((a, "Style A"), (mixed, "The mix"), (b, "Style B"))):
        _result(flow, world, lora, prompts, latent, same, i, title)


def asymmetric_guidance(flow: Workflow) -> None:
    flow.group("1  References: pictures of one style", BLUE, PICTURE, PICTURE)
    pictures = references(flow, *(f"blueprint_{i}.png" for i in (1, 2, 3, 4)))
    flow.group("2  The style, and the neutral LoRA", GREEN, 300)
    world = demo(flow)
    lora = predicted(flow, world.predictor, pictures)
    flow.group("3  What to draw", AMBER, 310)
    prompts = texts(flow, world.clip, "two stars in the middle")
    latent = square(flow)
    same = seed(flow, 7, "Seed for both")
    cfg = flow.add("PrimitiveFloat", Look("cfg for both"), value=7.0)["float"]
    flow.group("4  Plain and asymmetric", PURPLE, 290, 280, 280)
    neutral = {"neutral": lora["neutral"], "neutral_strength": 1.0}
    for row, title in enumerate(("Plain CFG", "Asymmetric CFG")):
        look = Look(y=top_of(row))
        if row == 0:
            model = applied(flow, world.model, lora["lora"], look)
        else:
            styled = {"model": world.model, "style": lora["lora"], "strength": 1.0}
            model = flow.add("AsymmetricCFG", replace(look, room=CARD), **styled, **neutral)["model"]
        drawn = sampled(flow, model, prompts, latent, same, replace(look, column=1), cfg=cfg)
        _drawn(flow, world, drawn, look, title)


def style_library(flow: Workflow) -> None:
    flow.group("1  A folder of styles", BLUE, 300)
    folder = flow.add("ImagesFromFolder", Look(room=110), folder=EXAMPLES, most_pictures=4)
    world = demo(flow)
    flow.group("2  For each style: a LoRA", GREEN, 300)
    lora = predicted(flow, world.predictor, [folder["references"]])["lora"]
    model = applied(flow, world.model, lora)
    flow.group("3  What to draw with each", AMBER, 310)
    prompts = texts(flow, world.clip, "two stars in the middle")
    latent = square(flow)
    flow.group("4  For each style: a picture and a file", PURPLE, 320, 400)
    picture = decoded(flow, sampled(flow, model, prompts, latent, 7), world.vae, Look(column=1))
    name = flow.add(
        "StringConcatenate",
        Look("Name of the file", height=166),
        string_a="i2l/styles/",
        string_b=folder["names"],
    )
    flow.add("SaveImage", Look(column=1, height=380), images=picture, filename_prefix="i2l/library")
    flow.add(
        "SavePredictedLoRA",
        Look(column=1, height=190, room=110),
        lora=lora,
        preview=picture,
        filename=name["string"],
    )


def img2img_inpaint(flow: Workflow) -> None:
    flow.group("1  References: pictures of one style", BLUE, PICTURE, PICTURE)
    pictures = references(flow, *(f"glass_{i}.png" for i in (1, 2, 3, 4)))
    flow.group("2  Your picture and a mask", BLUE, PICTURE)
    scene = flow.picture("scene.png", Look("Your picture"))["image"]
    mask = flow.picture("scene_mask.png", Look("White: here", height=318), "LoadImageMask", channel="red")[
        "mask"
    ]
    flow.group("3  Pictures to LoRA, LoRA to model", GREEN, 300)
    world = demo(flow)
    lora = predicted(flow, world.predictor, pictures)
    model = applied(flow, world.model, lora["lora"])
    flow.group("4  What it shows", AMBER, 310)
    prompts = texts(flow, world.clip, "two houses in the middle")
    latent = flow.add("VAEEncode", pixels=scene, vae=world.vae)["latent"]
    inside = flow.add("SetLatentNoiseMask", samples=latent, mask=mask)["latent"]
    same = seed(flow, 7, "Seed for both")
    flow.group("5  Inside the mask, and all of it", PURPLE, 320, 300)
    look = Look("Inside the mask", y=top_of(0))
    drawn = sampled(flow, model, prompts, inside, same, look, denoise=0.9)
    drawn = decoded(flow, drawn, world.vae, Look(column=1))
    kept = flow.add(
        "ImageCompositeMasked", Look("The rest as it was", 1), destination=scene, source=drawn, mask=mask
    )["image"]
    flow.add(
        "SaveImage",
        Look("Inpaint: inside the mask", 1, height=330),
        images=kept,
        filename_prefix="i2l/inpaint",
    )
    again = sampled(flow, model, prompts, latent, same, Look("All of it", y=top_of(1)), denoise=0.6)
    again = decoded(flow, again, world.vae, Look(column=1))
    flow.add(
        "SaveImage", Look("Img2img: all of it", 1, height=330), images=again, filename_prefix="i2l/img2img"
    )


def style_regions(flow: Workflow) -> None:
    flow.group("1  Style A", BLUE, PICTURE)
    neon = references(flow, "neon_1.png", "neon_4.png", columns=1)
    flow.group("2  Style B", BLUE, PICTURE)
    glass = references(flow, "glass_1.png", "glass_4.png", columns=1, first=3)
    flow.group("3  LoRAs, and where B goes", GREEN, 300)
    world = demo(flow)
    a = predicted(flow, world.predictor, neon, Look("LoRA of style A"))["lora"]
    b = predicted(flow, world.predictor, glass, Look("LoRA of style B"))["lora"]
    mask = Look("White: B goes here", height=318)
    right = flow.picture("scene_mask.png", mask, "LoadImageMask", channel="red")["mask"]
    flow.group("4  What to draw, and where", AMBER, 340, 300)
    prompts = texts(flow, world.clip, "one house on the left")
    look = Look("Draw this in B", height=120, colors=POSITIVE)
    other = flow.add("CLIPTextEncode", look, clip=world.clip, text="one tree on the right")["conditioning"]
    latent = square(flow)
    left = flow.add("InvertMask", Look("The rest: A", column=1), mask=right)["mask"]
    inputs = {"model": world.model, "positive": prompts[0], "lora": a, "mask": left}
    region = flow.add("StyleRegion", Look("Region A", column=1, room=60), **inputs, strength=1.0)
    inputs = {"model": region["model"], "positive": region["positive"], "lora": b, "mask": right}
    look = Look("Region B", column=1, room=60)
    region = flow.add("StyleRegion", look, **inputs, strength=1.0, prompt=other)
    flow.group("5  Two styles, each in its place", PURPLE, 320, 400)
    drawn = sampled(flow, region["model"], (region["positive"], prompts[1]), latent, 7)
    picture = decoded(flow, drawn, world.vae, Look(column=1))
    flow.add("SaveImage", Look(column=1, height=440), images=picture, filename_prefix="i2l/regions")


def structure_brightness(flow: Workflow) -> None:
    flow.group("1  References: pictures of one style", BLUE, PICTURE)
    pictures = references(flow, "glass_1.png", "glass_4.png", columns=1)
    flow.group("2  FLUX.2, templates, and the style", GREEN, 300)
    names = ("model", "clip", "vae", "predictor", "structure", "brightness")
    node = flow.add("LoadI2LTemplateDemo", Look(height=146))
    model, clip, vae, predictor, structure, brightness = (node[name] for name in names)
    lora = predicted(flow, predictor, pictures)
    styled = {"model": model, "style": lora["lora"], "strength": 1.0, "neutral": lora["neutral"]}
    model = flow.add("AsymmetricCFG", Look(room=CARD), **styled, neutral_strength=1.0)["model"]
    flow.group("3  What to draw, where, how bright", AMBER, 340, 320)
    said = flow.add(
        "PrimitiveStringMultiline",
        Look("What to draw", height=120, colors=POSITIVE),
        value="one tree on the left",
    )
    prompts = texts(flow, clip, said["string"])
    where = flow.picture("structure.png", Look("Where: white", column=1))["image"]
    parts = {"template": structure, "vae": vae, "clip": clip, "image": where, "prompt": said["string"]}
    place = flow.add("TemplatePicture", Look("Structure", 1, height=200, room=60), **parts)["inputs"]
    bright = {"template": brightness, "scale": "0 to 1", "scale.value": 0.8}
    light = flow.add("TemplateValue", Look("Brightness", 1, room=60), **bright)["inputs"]
    latent = square(flow)
    same = seed(flow, 7)
    flow.group("4  Style, then structure, then brightness", PURPLE, 290, 280, 280)
    sides = {"positive": prompts[0], "negative": prompts[1]}
    world = World(model, clip, vae, predictor)
    for row, (title, inputs) in enumerate((("Style", None), ("+ structure", place), ("+ brightness", light))):
        look = Look(y=top_of(row))
        if inputs is not None:
            added = flow.add("ApplyTemplate", replace(look, room=60), **sides, inputs=inputs)
            sides = {"positive": added["positive"], "negative": added["negative"]}
        drawn = sampled(
            flow,
            model,
            (sides["positive"], sides["negative"]),
            latent,
            same,
            replace(look, column=1),
        )
        _drawn(flow, world, drawn, look, title)


def morph(flow: Workflow) -> None:
    flow.group("1  Style A", BLUE, PICTURE)
    glass = references(flow, "glass_1.png", "glass_4.png", columns=1)
    flow.group("2  Style B", BLUE, PICTURE)
    blueprint = references(flow, "blueprint_1.png", "blueprint_4.png", columns=1, first=3)
    flow.group("3  A way from A to B", GREEN, 300, 300)
    world = demo(flow)
    a = predicted(flow, world.predictor, glass, Look("LoRA of style A"))["lora"]
    b = predicted(flow, world.predictor, blueprint, Look("LoRA of style B"))["lora"]
    way = _fused(flow, a, b, (1.0, 1.0), "morph", Look(column=1), frames=6)
    model = applied(flow, world.model, way, Look(column=1))
    flow.group("4  What to draw", AMBER, 310)
    prompts = texts(flow, world.clip, "one mushroom in the middle")
    latent = square(flow)
    flow.group("5  A picture for each step", PURPLE, 320, 640)
    pictures = decoded(flow, sampled(flow, model, prompts, latent, 7), world.vae, Look(column=1))
    row = flow.add("ImageGrid", Look("All in a row", 1), images=pictures, columns=6)["images"]
    flow.add("SaveImage", Look("The row", 1, height=260), images=row, filename_prefix="i2l/morph")
    flow.add("PreviewImage", Look("One by one", 1, height=380), images=pictures)


def _fused(
    flow: Workflow,
    a: Socket,
    b: Socket,
    weights: tuple[float, float],
    method: str,
    look: Look = PLAIN,
    **settings: float,
) -> Socket:
    entries: dict[str, Any] = {"loras": "2", "method": method}
    for number, (lora, weight) in enumerate(zip((a, b), weights, strict=True), 1):
        entries |= {f"loras.lora_{number}": lora, f"loras.weight_{number}": weight}
    entries |= {f"method.{name}": value for name, value in settings.items()}
    return flow.add("FuseLoRAs", replace(look, room=100), **entries)["lora"]


def _result(
    flow: Workflow,
    world: World,
    lora: Socket,
    prompts: tuple[Socket, Socket],
    latent: Socket,
    same: Socket,
    row: int,
    title: str,
) -> None:
    """A row: a LoRA applied, a picture drawn with it and shown."""
    look = Look(y=top_of(row))
    model = applied(flow, world.model, lora, look)
    _drawn(flow, world, sampled(flow, model, prompts, latent, same, replace(look, column=1)), look, title)


def _drawn(flow: Workflow, world: World, latent: Socket, look: Look, title: str) -> None:
    picture = decoded(flow, latent, world.vae, replace(look, column=2))
    look = Look(title, column=2, height=290)
    flow.add("SaveImage", look, images=picture, filename_prefix=f"i2l/{flow.name}")


TINY = {
    "start_here": start_here,
    "many_references": many_references,
    "tone_only": tone_only,
    "fuse_styles": fuse_styles,
    "asymmetric_guidance": asymmetric_guidance,
    "style_library": style_library,
    "img2img_inpaint": img2img_inpaint,
    "style_regions": style_regions,
    "morph": morph,
    "structure_brightness": structure_brightness,
}
