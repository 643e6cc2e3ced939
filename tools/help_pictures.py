"""`python -m tools.help_pictures`: the pictures of the help pages, web/docs/NODE/picture.jpg, over what is there.

Where a workflow shows the node at work, its card in the template browser, smaller; else sheets of real runs of
start_here with other inputs. For loading Infinity, whose files do not ship with the pack, what to connect.
"""

from __future__ import annotations

import copy
import io
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .api_graph import PREDICT, Prompt, nodes_of, only_pictures, pictures_of, with_text, without_lora
from .card_drawing import FOLDER, GROUND, INK
from .comfy_client import ComfyClient, ComfyError
from .comfy_server import ComfyServer
from .host import ROOT
from .infinity_graphs import pictures as infinity_graphs
from .template_pictures import QUALITY, prompt_of

DOCS = ROOT / "web" / "docs"
CARDS = {  # node -> the workflow whose card shows it
    "ImagesToLoRA": "start_here",
    "StyleReference": "many_references",
    "ImagesFromFolder": "style_library",
    "FuseLoRAs": "fuse_styles",
    "AsymmetricCFG": "asymmetric_guidance",
    "StyleRegion": "style_regions",
    "LoadI2LTemplateDemo": "structure_brightness",
    "LoadI2LPredictor": "zimage_i2l",
    "LoadTemplate": "flux2_klein_structure_i2l",
    "TemplateValue": "flux2_klein_brightness_i2l",
    "TemplateColour": "flux2_klein_brightness_i2l",
    "TemplatePicture": "flux2_klein_structure_i2l",
    "TemplateInpaint": "flux2_klein_template_inpaint_i2l",
    "TemplateSettings": "flux2_klein_brightness_i2l",
    "ApplyTemplate": "flux2_klein_structure_i2l",
    "TemplateToLoRA": "flux2_klein_i2l",
    "SaveTemplateCache": "flux2_klein_structure_i2l",
    "InfinityStyle": "infinity_alpha",
    "InfinityStyleFromWords": "infinity_words",
    "InfinityStartFromPicture": "infinity_restyle",
    "LoadInfinityDemo": "infinity_style",
}
CARD_SIDE = 448
CELL, GAP, CAPTION, SIZE = 212, 8, 36, 22  # pixels: of a sheet; SIZE of its letters
COLUMNS = 2
PREVIEW = (800, 600)
TEXT = "one house in the middle"


def sheet(cells: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in two columns, each with words below: help pages are narrow."""
    rows = math.ceil(len(cells) / COLUMNS)
    size = (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + CAPTION + GAP))
    drawn, font = Image.new("RGB", size, GROUND), ImageFont.load_default(SIZE)
    pen = ImageDraw.Draw(drawn)
    for i, (words, picture) in enumerate(cells):
        left = GAP + i % COLUMNS * (CELL + GAP)
        top = GAP + i // COLUMNS * (CELL + CAPTION + GAP)
        drawn.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC), (left, top))
        pen.text((left + CELL / 2, top + CELL + CAPTION / 2), words, INK, font, anchor="mm")
    return drawn


class Studio:
    """start_here on a server, with other inputs."""

    def __init__(self, client: ComfyClient) -> None:
        self._client = client
        self._prompt = with_text(only_pictures(prompt_of(client, "start_here"))[0], TEXT)

    def draw(self, prompt: Prompt, kind: str = "SaveImage") -> Image.Image:
        result = self._client.queue(prompt)
        if not result.ok:
            raise ComfyError(result.error_message)
        (node,) = nodes_of(prompt, kind)
        (picture,) = result.images(node)
        return Image.open(io.BytesIO(self._client.image(picture)))

    def changed(self, kind: str, **inputs: Any) -> Prompt:
        prompt = copy.deepcopy(self._prompt)
        (node,) = nodes_of(prompt, kind)
        prompt[node]["inputs"].update(inputs)
        return prompt

    def strengths(self) -> Image.Image:
        values = (0.0, 0.5, 1.0, 1.5)
        return sheet(
            [
                (f"strength {value:g}", self.draw(self.changed("ApplyPredictedLoRA", strength=value)))
                for value in values
            ]
        )

    def blocks(self, presets: Sequence[str]) -> Image.Image:
        cells = []
        for preset in presets:
            prompt = self.changed("ApplyPredictedLoRA", lora=["part", 0])
            strengths = dict.fromkeys(("attention", "mlp", "other", "image", "text"), 1.0)
            inputs = {"lora": [*nodes_of(prompt, PREDICT), 0], "preset": preset, "depth": "", **strengths}
            prompt["part"] = {"class_type": "LoRABlocks", "inputs": inputs, "_meta": {"title": "part"}}
            cells.append((preset, self.draw(prompt)))
        return sheet(cells)

    def texts(self, styled: bool, texts: Sequence[tuple[str, str]]) -> Image.Image:
        prompt = self._prompt if styled else without_lora(self._prompt)
        return sheet([(words, self.draw(with_text(prompt, text))) for words, text in texts])

    def tones(self) -> Image.Image:
        """The reference, and a prompt with its tone at three grids."""
        name = pictures_of(self._prompt)[0]
        cells = [("reference", Image.open(ROOT / "workflows" / "references" / name).convert("RGB"))]
        for grid in (0, 1, 4):
            prompt = without_lora(self._prompt)
            (sampler,), (loader,) = (nodes_of(prompt, kind) for kind in ("KSampler", "LoadI2LDemo"))
            if grid:
                prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": name}}
                inputs = {"model": [loader, 0], "vae": [loader, 2], "image": ["picture", 0]}
                inputs |= {"strength": 1.0, "grid": grid, "alpha": 1.0, "end_percent": 0.5}
                prompt["tone"] = {"class_type": "StyleToneBlend", "inputs": inputs}
                prompt[sampler]["inputs"]["model"] = ["tone", 0]
            cells.append((f"grid {grid}" if grid else "without", self.draw(prompt)))
        return sheet(cells)

    def preview(self) -> Image.Image:
        prompt = copy.deepcopy(self._prompt)
        inputs = {"lora": [*nodes_of(prompt, PREDICT), 0], "width": 1200}
        prompt["draw"] = {"class_type": "LoRAPreview", "inputs": inputs, "_meta": {"title": "draw"}}
        return self.draw(prompt, "LoRAPreview").resize(PREVIEW, Image.Resampling.LANCZOS)


def save(picture: Image.Image, node: str) -> None:
    path = DOCS / node / "picture.jpg"
    path.parent.mkdir(exist_ok=True)
    picture.convert("RGB").save(path, quality=QUALITY, optimize=True)
    sys.stdout.write(f"{path}\n")


def main() -> None:
    for node, workflow in CARDS.items():
        card = Image.open(FOLDER / f"{workflow}.jpg")
        save(card.resize((CARD_SIDE, CARD_SIDE), Image.Resampling.LANCZOS), node)
    for node, picture in infinity_graphs().items():
        save(picture, node)
    with tempfile.TemporaryDirectory(prefix="i2l-help-") as base, ComfyServer(Path(base)) as server:
        studio = Studio(server.client())
        save(studio.strengths(), "ApplyPredictedLoRA")
        save(studio.blocks(("everywhere", "early blocks", "attention", "late blocks")), "LoRABlocks")
        things = ("star", "heart", "tree", "mushroom")
        save(
            studio.texts(True, [(thing, f"one {thing} in the middle") for thing in things]),
            "SavePredictedLoRA",
        )
        words = (
            ("two stars, chalk", "two stars in the middle, chalk, yellow on blue"),
            ("one house, clay", "one house in the middle, clay, orange on teal"),
            ("one tree, poster", "one tree in the middle, poster, green on pink"),
            ("mushroom, neon", "one mushroom in the middle, neon, pink on blue"),
        )
        save(studio.texts(False, words), "LoadI2LDemo")
        save(studio.tones(), "StyleToneBlend")
        save(studio.preview(), "LoRAPreview")


if __name__ == "__main__":
    main()
