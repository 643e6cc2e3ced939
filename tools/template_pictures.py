"""`python -m tools.template_pictures`: the pictures of the template browser, workflows/NAME.jpg, over what is there.

Those of the demo world show what the workflow gives: it is run on a real server, as it ships (start_here with
another text). Those of the real models show what goes in and what is done with it, and say so: nobody has run
these models here.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .api_graph import only_pictures, with_text, without_lora
from .card_drawing import (
    ACCENT,
    FOLDER,
    GAP,
    GROUND,
    INK,
    INNER,
    LIBRARY,
    MARGIN,
    PANEL,
    SIDE,
    SOFT,
    TEXT,
    TITLE,
    Card,
    Pictures,
    four,
    masked,
    shipped,
)
from .comfy_client import ComfyClient, ComfyError
from .comfy_server import ComfyServer
from .graph_to_api import graph_to_api
from .infinity_pictures import INFINITY

QUALITY = 88
FIRST_TEXT = "one house in the middle"  # of start_here: its own leaves half of the picture empty

Prompt = dict[str, dict[str, Any]]


def _before_and_after(
    card: Card, references: Sequence[Image.Image], results: Sequence[tuple[str, Image.Image]]
) -> None:
    """References above, two large pictures below, the second one framed."""
    bottom = card.row(references, MARGIN, MARGIN, INNER)
    side = (INNER - GAP) / 2
    top = SIDE - MARGIN - side - 52
    card.arrow(SIDE / 2, (bottom + top) / 2)
    for i, (words, picture) in enumerate(results):
        left = MARGIN + i * (side + GAP)
        card.paste(picture, left, top, side, ACCENT if i else "")
        card.text(words, left + side / 2, SIDE - MARGIN - 20)


def start_here(card: Card, shown: Pictures) -> None:
    (after,), (before,) = shown["Save Image"], shown["without"]
    _before_and_after(card, four("neon"), (("without", before), ("with the style", after)))


def many_references(card: Card, shown: Pictures) -> None:
    page, window = shipped("page", "page_mask")
    outside = masked(page, ImageChops.invert(window), GROUND, 0.75)
    (one,), (every,) = shown["The page alone"], shown["All four"]
    pictures = [*shipped("neon_1", "neon_2", "neon_3"), outside]
    _before_and_after(card, pictures, (("from the page", one), ("from all four", every)))
    side = (INNER - 3 * GAP) / 4
    card.badge("2 x", MARGIN + 3 * side + 2 * GAP, MARGIN + side)
    card.badge("mask", MARGIN + INNER, MARGIN + side)


def asymmetric_guidance(card: Card, shown: Pictures) -> None:
    (plain,), (asymmetric,) = shown["Plain CFG"], shown["Asymmetric CFG"]
    _before_and_after(card, four("blueprint"), (("plain CFG", plain), ("asymmetric", asymmetric)))


def fuse_styles(card: Card, shown: Pictures) -> None:
    pair = (INNER - 64) / 2
    bottom = card.row(shipped("neon_1", "neon_4"), MARGIN, MARGIN, pair)
    card.row(shipped("glass_1", "glass_4"), SIDE - MARGIN - pair, MARGIN, pair)
    card.text("+", SIDE / 2, (MARGIN + bottom) / 2, TITLE, ACCENT)
    (a,), (mix,), (b,) = shown["Style A"], shown["The mix"], shown["Style B"]
    large, small = 400.0, 146.0
    top = SIDE - MARGIN - large
    card.arrow(SIDE / 2, (bottom + top) / 2)
    card.paste(mix, (SIDE - large) / 2, top, large, ACCENT)
    for picture, left in ((a, MARGIN), (b, SIDE - MARGIN - small)):
        card.paste(picture, left, SIDE - MARGIN - small, small)
    card.text("A", MARGIN + small / 2, SIDE - MARGIN - small - 28)
    card.text("B", SIDE - MARGIN - small / 2, SIDE - MARGIN - small - 28)
    card.text("mix", SIDE - MARGIN - small / 2, top + 26, TEXT, ACCENT)


def tone_only(card: Card, shown: Pictures) -> None:
    side = (INNER - GAP) / 2
    (plain,) = shown["The prompt alone"]
    small = 200.0
    gap = (INNER - 3 * small) / 2
    tops = [*shipped("neon_1"), plain, *shipped("blueprint_1")]
    for i, (picture, words) in enumerate(zip(tops, ("A", "prompt", "B"), strict=True)):
        left = MARGIN + i * (small + gap)
        card.paste(picture, left, MARGIN, small)
        card.badge(words, left + small, MARGIN + small)
    top = SIDE - MARGIN - side
    for i, title in enumerate(("Tone of A", "Tone of B")):
        left = MARGIN + i * (side + GAP)
        card.arrow(left + side / 2, (MARGIN + small + top) / 2)
        card.paste(shown[title][0], left, top, side, ACCENT)
        card.badge(f"tone of {title[-1]}", left + side, SIDE - MARGIN)


def style_library(card: Card, shown: Pictures) -> None:
    folders = sorted(path for path in LIBRARY.iterdir() if path.is_dir())
    width = (INNER - 2 * GAP) / 2
    for i, (folder, picture) in enumerate(zip(folders, shown["Save Image"], strict=True)):
        left = MARGIN + (i % 2) * (width + 2 * GAP)
        top = MARGIN + (i // 2) * (SIDE - MARGIN) / 2
        references = [Image.open(path) for path in sorted(folder.glob("*.png"))]
        side = (300 - 3 * 8) / 4
        for number, reference in enumerate(references):
            card.paste(reference, left, top + 44 + number * (side + 8), side)
        card.text(folder.name, left, top + 18, TEXT, INK, "lm")
        card.arrow(left + side + 16, top + 44 + 150, down=False, size=12)
        card.paste(picture, left + side + 30, top + 44, width - side - 30)


def img2img_inpaint(card: Card, shown: Pictures) -> None:
    picture, mask = shipped("scene", "scene_mask")
    side = (INNER - GAP) / 2
    small = (side - GAP) / 2
    card.paste(masked(picture, mask), MARGIN, MARGIN, side)
    for i, reference in enumerate(four("glass")):
        left = MARGIN + side + GAP + (i % 2) * (small + GAP)
        card.paste(reference, left, MARGIN + (i // 2) * (small + GAP), small)
    (inside,), (everywhere,) = shown["Inpaint: inside the mask"], shown["Img2img: all of it"]
    top = SIDE - MARGIN - side
    card.paste(inside, MARGIN, top, side, ACCENT)
    card.paste(everywhere, MARGIN + side + GAP, top, side)
    card.badge("inside the mask", MARGIN + side, SIDE - MARGIN)
    card.badge("all of it", SIDE - MARGIN, SIDE - MARGIN)


def style_regions(card: Card, shown: Pictures) -> None:
    pair = (INNER - 64) / 2
    bottom = card.row(shipped("neon_1", "neon_4"), MARGIN, MARGIN, pair)
    card.row(shipped("glass_1", "glass_4"), SIDE - MARGIN - pair, MARGIN, pair)
    (picture,) = shown["Save Image"]
    side = SIDE - 2 * MARGIN - bottom + MARGIN - 64
    left, top = (SIDE - side) / 2, SIDE - MARGIN - side
    for x, words in ((left + side / 4, "A"), (left + 3 * side / 4, "B")):
        card.arrow(x, (bottom + top) / 2)
        outer = left / 2 if words == "A" else SIDE - left / 2
        card.text(words, outer, top + side / 2, TITLE, ACCENT)
    card.paste(picture, left, top, side, ACCENT)


def morph(card: Card, shown: Pictures) -> None:
    frames = shown["One by one"]
    pair = (INNER - 64) / 2
    bottom = card.row(shipped("glass_1", "glass_4"), MARGIN, MARGIN, pair)
    card.row(shipped("blueprint_1", "blueprint_4"), SIDE - MARGIN - pair, MARGIN, pair)
    card.arrow(SIDE / 2, (MARGIN + bottom) / 2, down=False)
    side = (INNER - 2 * GAP) / 3
    top = SIDE - MARGIN - 2 * side - GAP
    for i, frame in enumerate(frames):
        card.paste(frame, MARGIN + (i % 3) * (side + GAP), top + (i // 3) * (side + GAP), side)
        card.badge(str(i + 1), MARGIN + (i % 3) * (side + GAP) + side, top + (i // 3) * (side + GAP) + side)


def structure_brightness(card: Card, shown: Pictures) -> None:
    """Style and structure above; below what is drawn without and with the structure, and brighter."""
    side = (INNER - 2 * GAP) / 3
    top = card.row(shipped("glass_1", "glass_4"), MARGIN, MARGIN, 2 * side + GAP)
    where = shipped("structure")[0]
    card.paste(where, SIDE - MARGIN - side, MARGIN, side)
    card.badge("where", SIDE - MARGIN, MARGIN + side)
    card.badge("style", MARGIN + 2 * side + GAP, top)
    large = (INNER - GAP) / 2
    (style,), (placed,), (bright,) = (shown[name] for name in ("Style", "+ structure", "+ brightness"))
    below = SIDE - MARGIN - large
    card.arrow(SIDE / 2, (max(top, MARGIN + side) + below) / 2)
    for picture, left, words in (
        (placed, MARGIN, "+ structure"),
        (bright, MARGIN + large + GAP, "+ brightness"),
    ):
        card.paste(picture, left, below, large, ACCENT)
        card.badge(words, left + large, SIDE - MARGIN)
    small = large / 3
    card.paste(style, MARGIN + large - small - 8, below + 8, small)


TINY: dict[str, Callable[[Card, Pictures], None]] = {
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
    **INFINITY,
}


def run(client: ComfyClient, name: str) -> dict[str, list[Image.Image]]:
    """What the workflow shows, by the titles of its nodes; "without": the same without a LoRA, of start_here."""
    prompt = prompt_of(client, name)
    if name == "start_here":
        prompt = with_text(only_pictures(prompt)[0], FIRST_TEXT)
        return _queue(client, name, prompt) | {
            "without": _queue(client, name, without_lora(prompt))["Save Image"]
        }
    return _queue(client, name, prompt)


def prompt_of(client: ComfyClient, name: str) -> Prompt:
    """A shipped workflow as the front end would queue it, with the pictures that it brings."""
    workflow = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    prompt = graph_to_api(workflow, client.object_info())
    for node in workflow["nodes"]:
        if picture := node["properties"].get("i2l_picture"):
            data = (FOLDER / picture).read_bytes()
            prompt[str(node["id"])]["inputs"]["image"] = client.upload(Path(picture).name, data)
    return prompt


def _queue(client: ComfyClient, name: str, prompt: Prompt) -> dict[str, list[Image.Image]]:
    result = client.queue(prompt)
    if not result.ok:
        raise ComfyError(f"{name}: {result.error_message}")
    titles = {key: node["_meta"]["title"] for key, node in prompt.items() if node["class_type"] in SHOWING}
    return {
        title: [Image.open(io.BytesIO(client.image(picture))) for picture in result.images(key)]
        for key, title in titles.items()
    }


SHOWING = ("SaveImage", "PreviewImage")


def save(card: Card, name: str) -> None:
    path = FOLDER / f"{name}.jpg"
    card.image.save(path, quality=QUALITY, optimize=True)
    sys.stdout.write(f"{path}\n")


@dataclass(frozen=True)
class Real:
    """What the card of a real model says. `given`: a picture that goes in beside the references, and what it is."""

    title: str
    style: str  # of the references that the workflow brings
    settings: str = "50 steps, cfg 4"
    given: Callable[[], tuple[str, Image.Image]] | None = None


def _lines() -> tuple[str, Image.Image]:
    """What a ControlNet gets of the example: its edges, white on black."""
    (scene,) = shipped("scene")
    large = scene.resize((512, 512), Image.Resampling.BICUBIC)
    edges = ImageChops.difference(
        large.filter(ImageFilter.MaxFilter(5)), large.filter(ImageFilter.MinFilter(5))
    )
    strongest = functools.reduce(ImageChops.lighter, edges.split())
    return "structure", strongest.point([0] * 40 + [255] * 216)


def _inside() -> tuple[str, Image.Image]:
    scene, mask = shipped("scene", "scene_mask")
    return "inside the mask", masked(scene, mask)


def _bright() -> tuple[str, Image.Image]:
    """The slider of a value: from dark to bright, with a mark where the workflow has it."""
    side, value = 512, 0.7
    ramp = Image.linear_gradient("L").rotate(90).resize((side, side)).convert("RGB")
    pen = ImageDraw.Draw(ramp)
    pen.rectangle((0, side // 2 - 5, side, side // 2 + 5), PANEL)
    x, radius = value * side, 34
    pen.ellipse((x - radius, side / 2 - radius, x + radius, side / 2 + radius), ACCENT)
    return "brightness", ramp


REAL = {
    "zimage_i2l": Real("Z-Image", "neon"),
    "zimage_turbo_i2l": Real("Z-Image Turbo", "glass", "8 steps, cfg 1"),
    "zimage_controlnet_i2l": Real("Z-Image ControlNet", "neon", given=_lines),
    "flux2_klein_i2l": Real("FLUX.2 klein", "blueprint"),
    "flux2_klein_inpaint_i2l": Real("FLUX.2 klein inpaint", "glass", given=_inside),
    "flux2_klein_structure_i2l": Real("FLUX.2 klein structure", "neon", given=_lines),
    "flux2_klein_brightness_i2l": Real("FLUX.2 klein brightness", "glass", given=_bright),
    "flux2_klein_template_inpaint_i2l": Real("klein inpaint template", "glass", given=_inside),
    "hidream_o1_i2l": Real("HiDream-O1", "neon"),
}


def plan(card: Card, real: Real) -> None:
    """What goes in and what is done with it: nothing that the model would have to draw."""
    card.text(real.title, SIDE / 2, MARGIN + 40, TITLE)
    card.text("in the style of your pictures", SIDE / 2, MARGIN + 96, TEXT, SOFT)
    side, top = 344.0, 172.0
    small = (side - GAP) / 2
    for i, reference in enumerate(four(real.style)):
        card.paste(reference, MARGIN + (i % 2) * (small + GAP), top + (i // 2) * (small + GAP), small)
    card.badge("references", MARGIN + side, top + side)
    left = SIDE - MARGIN - side
    if real.given:
        words, picture = real.given()
        card.paste(picture, left, top, side)
        card.badge(words, SIDE - MARGIN, top + side)
        boxes = [(f"LoRA + {real.title.split()[0]}", real.settings, MARGIN, 560.0, INNER, 104.0)]
        card.arrow(MARGIN + side / 2, top + side + 24, size=18)
        card.arrow(left + side / 2, top + side + 24, size=18)
    else:
        card.arrow(SIDE / 2 + 6, top + side / 2, down=False, size=14)
        boxes = [
            ("LoRA", "one pass, no training", left + 12, top, side - 12, 150.0),
            (real.title, real.settings, left + 12, top + side - 150, side - 12, 150.0),
        ]
        card.arrow(left + side / 2 + 6, top + side / 2, size=18)
    for first, second, x, y, width, height in boxes:
        card.box(f"{first}\n{second}", x, y, width, height)
    card.frame("your picture", MARGIN, 588 if not real.given else 688, INNER, 156 if not real.given else 56)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="template_pictures", description="The pictures of the template browser."
    )
    parser.add_argument("names", nargs="*", help="only these workflows (default: all)")
    wanted = parser.parse_args().names or [*TINY, *REAL]
    for name in [name for name in wanted if name in REAL]:
        card = Card()
        plan(card, REAL[name])
        save(card, name)
    if not (tiny := [name for name in wanted if name in TINY]):
        return
    with tempfile.TemporaryDirectory(prefix="i2l-pictures-") as base, ComfyServer(Path(base)) as server:
        client = server.client()
        for name in tiny:
            card = Card()
            TINY[name](card, run(client, name))
            save(card, name)


if __name__ == "__main__":
    main()
