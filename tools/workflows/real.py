"""Workflows for the real models, with the settings that the authors of their predictors recommend.

Files, folders and links of the base models are those of ComfyUI's own templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .graph import AMBER, BLUE, GREEN, PLAIN, POSITIVE, PURPLE, Look, Node, Socket, Workflow
from .parts import (
    CARD,
    PICTURE,
    PREVIEW,
    World,
    applied,
    decoded,
    predicted,
    references,
    sampled,
    square,
    texts,
)

HUGGING_FACE = "https://huggingface.co"
Z_IMAGE = f"{HUGGING_FACE}/Comfy-Org/z_image/resolve/main/split_files"
Z_IMAGE_TURBO = f"{HUGGING_FACE}/Comfy-Org/z_image_turbo/resolve/main/split_files"
KLEIN = f"{HUGGING_FACE}/Comfy-Org/flux2-klein/resolve/main/split_files"
FLUX2 = f"{HUGGING_FACE}/Comfy-Org/flux2-dev/resolve/main/split_files"
HIDREAM = f"{HUGGING_FACE}/Comfy-Org/HiDream-O1-Image/resolve/main/checkpoints"
CONTROL = f"{HUGGING_FACE}/alibaba-pai/Z-Image-Fun-Controlnet-Union-2.1/resolve/main"

STEPS, CFG = 50, 4.0
Z_SHIFT = 3.0
MISSING = 40  # pixels below a node that loads a file, for the bar that says that it is missing
PROMPT = "A cat sits on a stone at the shore of a lake, mountains behind it"


def zimage_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "neon")
    world = _z_image(flow)
    model, _ = _guided(flow, world, pictures)
    prompts = _prompts(flow, world)
    _drawn(flow, world, model, prompts, square(flow, 1024))


def zimage_turbo_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "glass")
    world = _z_image(flow, f"{Z_IMAGE_TURBO}/diffusion_models/z_image_turbo_bf16.safetensors")
    flow.group("3  Pictures to LoRA, LoRA to model", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)["lora"]
    model = applied(flow, world.model, lora)
    flow.group("4  What to draw", AMBER, 340)
    wanted, _ = texts(flow, world.clip, PROMPT, negative=False)
    nothing = flow.add("ConditioningZeroOut", conditioning=wanted)["conditioning"]
    _drawn(
        flow, world, model, (wanted, nothing), square(flow, 1024), steps=8, cfg=1.0, sampler="res_multistep"
    )


def zimage_controlnet_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "neon")
    flow.group("2  The structure", BLUE, PICTURE)
    scene = flow.picture("scene.png", Look("Picture with the structure"))["image"]
    scaled = _megapixel(flow, scene)
    lines = flow.add("Canny", image=scaled, low_threshold=0.1, high_threshold=0.32)["image"]
    size = flow.add("GetImageSize", image=scaled)
    world = _z_image(flow, number=3)
    file = f"{CONTROL}/Z-Image-Fun-Controlnet-Union-2.1.safetensors"
    look = Look(room=MISSING, properties=_file(file, "model_patches"))
    patch = flow.add("ModelPatchLoader", look, name=_name(file))["model_patch"]
    flow.group("4  Structure and style", GREEN, 300)
    held = flow.add(
        "ZImageFunControlnet",
        Look("Structure", room=30),
        model=world.model,
        model_patch=patch,
        vae=world.vae,
        image=lines,
        strength=0.8,
    )["model"]
    model, _ = _guided(flow, replace(world, model=held), pictures, number=0)
    prompts = _prompts(flow, world, "Two houses at the edge of a forest", number=5)
    latent = flow.add("EmptySD3LatentImage", width=size["width"], height=size["height"], batch_size=1)[
        "latent"
    ]
    _drawn(flow, world, model, prompts, latent, number=6)


def flux2_klein_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "blueprint")
    world = _klein(flow)
    flow.group("3  Pictures to LoRA", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)
    prompts = _prompts(flow, world)
    width = flow.add("PrimitiveInt", Look("Width"), value=1024)["int"]
    height = flow.add("PrimitiveInt", Look("Height"), value=1024)["int"]
    flow.group("5  The styled picture", PURPLE, 320, 480)
    latent = flow.add("EmptyFlux2LatentImage", width=width, height=height, batch_size=1)["latent"]
    sigmas = flow.add("Flux2Scheduler", steps=STEPS, width=width, height=height)["sigmas"]
    _sampled_by_guider(flow, world, lora, prompts, latent, sigmas)


def flux2_klein_inpaint_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "glass")
    flow.group("2  Your picture and a mask", BLUE, PICTURE)
    scene = flow.picture("scene.png", Look("Your picture"))["image"]
    mask = flow.picture("scene_mask.png", Look("White: here", height=318), "LoadImageMask", channel="red")[
        "mask"
    ]
    scaled = _megapixel(flow, scene)
    world = _klein(flow, number=3)
    flow.group("4  Pictures to LoRA", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)
    encoded = flow.add("VAEEncode", pixels=scaled, vae=world.vae)["latent"]
    latent = flow.add("SetLatentNoiseMask", samples=encoded, mask=mask)["latent"]
    size = flow.add("GetImageSize", image=scaled)
    prompts = _prompts(flow, world, "Two houses at the edge of a forest", number=5)
    flow.group("6  The style inside the mask", PURPLE, 320, 480)
    steps = flow.add("Flux2Scheduler", steps=STEPS, width=size["width"], height=size["height"])["sigmas"]
    sigmas = flow.add("SplitSigmasDenoise", Look("How much is drawn anew"), sigmas=steps, denoise=0.85)
    _sampled_by_guider(flow, world, lora, prompts, latent, sigmas["low_sigmas"], (scaled, mask))


def flux2_klein_structure_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "neon")
    flow.group("2  The structure", BLUE, PICTURE)
    scene = flow.picture("scene.png", Look("Picture with the structure"))["image"]
    scaled = _megapixel(flow, scene)
    lines = flow.add("Canny", image=scaled, low_threshold=0.1, high_threshold=0.32)["image"]
    size = flow.add("GetImageSize", image=scaled)
    world = _klein(flow, number=3)
    template = _template(flow, "ControlNet")
    flow.group("4  Pictures to LoRA", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)
    flow.group("5  What to draw, and where", AMBER, 340, 320)
    words = "Two houses at the edge of a forest"
    said = flow.add(
        "PrimitiveStringMultiline", Look("What to draw", height=140, colors=POSITIVE), value=words
    )
    prompts = texts(flow, world.clip, said["string"])
    parts = {"template": template, "image": lines, "vae": world.vae, "clip": world.clip}
    look = Look("Structure", column=1, height=200, room=60)
    inputs = flow.add("TemplatePicture", look, **parts, prompt=said["string"])["inputs"]
    applied = _with_template(flow, prompts, inputs)
    flow.group("6  Structure and style", PURPLE, 320, 480)
    sides = {"width": size["width"], "height": size["height"]}
    latent = flow.add("EmptyFlux2LatentImage", PLAIN, **sides, batch_size=1)["latent"]
    sigmas = flow.add("Flux2Scheduler", PLAIN, steps=STEPS, **sides)["sigmas"]
    _sampled_by_guider(flow, world, lora, (applied["positive"], applied["negative"]), latent, sigmas)


def flux2_klein_brightness_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "glass")
    world = _klein(flow)
    template = _template(flow, "Brightness")
    flow.group("3  Pictures to LoRA", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)
    prompts = _prompts(flow, world)
    bright = {"scale": "0 to 1", "scale.value": 0.7}
    inputs = flow.add("TemplateValue", Look("How bright", room=60), template=template, **bright)["inputs"]
    applied = _with_template(flow, prompts, inputs, 0)
    width = flow.add("PrimitiveInt", Look("Width"), value=1024)["int"]
    height = flow.add("PrimitiveInt", Look("Height"), value=1024)["int"]
    flow.group("5  The styled picture", PURPLE, 320, 480)
    latent = flow.add("EmptyFlux2LatentImage", width=width, height=height, batch_size=1)["latent"]
    sigmas = flow.add("Flux2Scheduler", steps=STEPS, width=width, height=height)["sigmas"]
    _sampled_by_guider(flow, world, lora, (applied["positive"], applied["negative"]), latent, sigmas)


def flux2_klein_template_inpaint_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "glass")
    flow.group("2  Your picture and a mask", BLUE, PICTURE)
    scene = flow.picture("scene.png", Look("Your picture"))["image"]
    mask = flow.picture("scene_mask.png", Look("White: here", height=318))["image"]
    scaled = _megapixel(flow, scene)
    white = flow.add("ImageToMask", image=_megapixel(flow, mask), channel="red")["mask"]
    world = _klein(flow, number=3)
    template = _template(flow, "Inpaint")
    flow.group("4  Pictures to LoRA", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)
    size = flow.add("GetImageSize", image=scaled)
    flow.group("5  What to draw, and where", AMBER, 340, 320)
    prompts = texts(flow, world.clip, "Two houses at the edge of a forest")
    parts = {"template": template, "image": scaled, "mask": white, "vae": world.vae}
    inputs = flow.add("TemplateInpaint", Look("Inside the mask", column=1, room=60), **parts)["inputs"]
    applied = _with_template(flow, prompts, inputs)
    flow.group("6  The style inside the mask", PURPLE, 320, 480)
    sigmas = flow.add("Flux2Scheduler", steps=STEPS, width=size["width"], height=size["height"])["sigmas"]
    prompts = applied["positive"], applied["negative"]
    _sampled_by_guider(flow, world, lora, prompts, applied["latent"], sigmas, (scaled, white))


def hidream_o1_i2l(flow: Workflow) -> None:
    pictures = _references(flow, "neon")
    flow.group("2  Models", GREEN, 340)
    file = f"{HIDREAM}/hidream_o1_image_bf16.safetensors"
    node = flow.add(
        "CheckpointLoaderSimple",
        Look(room=MISSING, properties=_file(file, "checkpoints")),
        ckpt_name=_name(file),
    )
    world = World(node["model"], node["clip"], node["vae"], _predictor(flow, "HidreamO1-i2L-v2/"))
    model, _ = _guided(flow, world, pictures)
    prompts = _prompts(flow, world, without=" ")
    latent = flow.add("EmptyHiDreamO1LatentImage", width=2048, height=2048, batch_size=1)["latent"]
    _drawn(flow, world, model, prompts, latent)


def _references(flow: Workflow, style: str) -> list[Socket]:
    flow.group("1  References: put your own here", BLUE, PICTURE, PICTURE)
    return references(flow, *(f"{style}_{i}.png" for i in (1, 2, 3, 4)))


def _z_image(
    flow: Workflow, file: str = f"{Z_IMAGE}/diffusion_models/z_image_bf16.safetensors", number: int = 2
) -> World:
    flow.group(f"{number}  Models", GREEN, 340)
    model = _diffusion_model(flow, file)
    model = flow.add("ModelSamplingAuraFlow", model=model, shift=Z_SHIFT)["model"]
    clip = _text_encoder(flow, f"{Z_IMAGE_TURBO}/text_encoders/qwen_3_4b.safetensors", "lumina2")
    vae = _vae(flow, f"{Z_IMAGE_TURBO}/vae/ae.safetensors")
    return World(model, clip, vae, _predictor(flow, "ZImage-i2L-v2/"))


def _klein(flow: Workflow, number: int = 2) -> World:
    flow.group(f"{number}  Models", GREEN, 340)
    model = _diffusion_model(flow, f"{KLEIN}/diffusion_models/flux-2-klein-base-4b.safetensors")
    clip = _text_encoder(flow, f"{KLEIN}/text_encoders/qwen_3_4b.safetensors", "flux2")
    vae = _vae(flow, f"{FLUX2}/vae/flux2-vae.safetensors")
    return World(model, clip, vae, _predictor(flow, "KleinBase4B-i2L-v2/"))


def _diffusion_model(flow: Workflow, url: str) -> Socket:
    look = Look(room=MISSING, properties=_file(url, "diffusion_models"))
    return flow.add("UNETLoader", look, unet_name=_name(url), weight_dtype="default")["model"]


def _text_encoder(flow: Workflow, url: str, kind: str) -> Socket:
    look = Look(room=MISSING, properties=_file(url, "text_encoders"))
    return flow.add("CLIPLoader", look, clip_name=_name(url), type=kind, device="default")["clip"]


def _vae(flow: Workflow, url: str) -> Socket:
    return flow.add("VAELoader", Look(room=MISSING, properties=_file(url, "vae")), vae_name=_name(url))["vae"]


def _predictor(flow: Workflow, name: str) -> Socket:
    return flow.add("LoadI2LPredictor", Look(room=90), predictor_name=name)["predictor"]


def _template(flow: Workflow, name: str) -> Socket:
    name = f"Template-KleinBase4B-{name}/"
    return flow.add("LoadTemplate", Look(room=90), template_name=name)["template"]


def _with_template(flow: Workflow, prompts: tuple[Socket, Socket], inputs: Socket, column: int = 1) -> Node:
    look = Look(column=column, room=CARD)
    return flow.add("ApplyTemplate", look, positive=prompts[0], negative=prompts[1], inputs=inputs)


def _file(url: str, folder: str) -> dict[str, Any]:
    """What the front end offers to download when the file is missing."""
    return {"models": [{"name": _name(url), "url": url, "directory": folder}]}


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _megapixel(flow: Workflow, picture: Socket) -> Socket:
    scale = {"upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 16}
    return flow.add("ImageScaleToTotalPixels", image=picture, **scale)["image"]


def _guided(
    flow: Workflow, world: World, pictures: Sequence[Socket], number: int = 3
) -> tuple[Socket, Socket]:
    """(the model with the style on the positive side, the LoRA)."""
    if number:
        flow.group(f"{number}  Pictures to LoRA, LoRA to model", GREEN, 300)
    lora = predicted(flow, world.predictor, pictures)
    model = flow.add(
        "AsymmetricCFG",
        Look("Style", room=CARD),
        model=world.model,
        style=lora["lora"],
        neutral=lora["neutral"],
        strength=1.0,
        neutral_strength=1.0,
    )["model"]
    return model, lora["lora"]


def _prompts(
    flow: Workflow, world: World, words: str = PROMPT, without: str = "", number: int = 4
) -> tuple[Socket, Socket]:
    flow.group(f"{number}  What to draw", AMBER, 340)
    return texts(flow, world.clip, words, without)


def _drawn(
    flow: Workflow,
    world: World,
    model: Socket,
    prompts: tuple[Socket, Socket],
    latent: Socket,
    number: int = 5,
    steps: int = STEPS,
    cfg: float = CFG,
    sampler: str = "euler",
) -> None:
    flow.group(f"{number}  The styled picture", PURPLE, 320, 480)
    look = Look(control="randomize")
    drawn = sampled(flow, model, prompts, latent, 0, look, steps, cfg, sampler)
    _saved(flow, decoded(flow, drawn, world.vae, Look(column=1)))


def _sampled_by_guider(
    flow: Workflow,
    world: World,
    lora: Any,
    prompts: tuple[Socket, Socket],
    latent: Socket,
    sigmas: Socket,
    into: tuple[Socket, Socket] | None = None,
) -> None:
    """`into`: a picture that stays but where the mask is white."""
    sampler = flow.add("KSamplerSelect", sampler_name="euler")["sampler"]
    noise = flow.add("RandomNoise", Look(control="randomize"), noise_seed=0)["noise"]
    guider = flow.add(
        "AsymmetricGuider",
        Look("Style", room=CARD + 60),
        model=world.model,
        positive=prompts[0],
        negative=prompts[1],
        style=lora["lora"],
        neutral=lora["neutral"],
        cfg=CFG,
        strength=1.0,
        neutral_strength=1.0,
    )["guider"]
    parts = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    drawn = flow.add("SamplerCustomAdvanced", Look(column=1, room=PREVIEW), **parts)["output"]
    picture = decoded(flow, drawn, world.vae, Look(column=1))
    if into:
        whole, mask = into
        look = Look("The rest as it was", column=1)
        picture = flow.add("ImageCompositeMasked", look, destination=whole, source=picture, mask=mask)[
            "image"
        ]
    _saved(flow, picture)


def _saved(flow: Workflow, picture: Socket) -> None:
    look = Look(column=1, height=480)
    flow.add("SaveImage", look, images=picture, filename_prefix=f"i2l/{flow.name.removesuffix('_i2l')}")


REAL = {
    "zimage_i2l": zimage_i2l,
    "zimage_turbo_i2l": zimage_turbo_i2l,
    "zimage_controlnet_i2l": zimage_controlnet_i2l,
    "flux2_klein_i2l": flux2_klein_i2l,
    "flux2_klein_inpaint_i2l": flux2_klein_inpaint_i2l,
    "flux2_klein_structure_i2l": flux2_klein_structure_i2l,
    "flux2_klein_brightness_i2l": flux2_klein_brightness_i2l,
    "flux2_klein_template_inpaint_i2l": flux2_klein_template_inpaint_i2l,
    "hidream_o1_i2l": hidream_o1_i2l,
}
