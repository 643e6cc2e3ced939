"""What a CLIP says of a picture: any CLIP in a folder as transformers saves it, PickScore's among them.

With unit embeddings e of the picture, t(text) of a text and r of each of N references, and the CLIP's own learned
scale (100 in those at full size):

    clip_text = scale e . t(prompt)            s_txt = e . t(prompt)
    clip_style = scale e . t(description)      s_img = 1/N sum_n e . r_n
    pickscore = scale e . t(prompt)            with PickScore's weights

Texts are cut at what the text encoder reads (77 tokens), as everybody who publishes these figures does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...i2l_core.checks import listed, shown
from ...i2l_core.errors import I2LError, first_line
from ...i2l_core.train.data.data_set import open_rgb
from .rows import Sample


class Clip:
    """Unit embeddings (D,), float32. Texts and references are embedded once.

    Raises I2LError naming the folder when it does not hold a CLIP, whole and of the sizes that its config says.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._model, self._processor = _load(folder)
        self._model.to(device)
        self._device = device
        self._known: dict[str | tuple[Path, ...], Tensor] = {}
        self.scale = float(self._model.logit_scale.detach().exp())
        self.cut = 0  # texts longer than what is read

    @torch.inference_mode()
    def picture(self, picture: Image.Image) -> Tensor:
        pixels = self._processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self._device)))

    @torch.inference_mode()
    def text(self, text: str) -> Tensor:
        if text not in self._known:
            most = self._model.config.text_config.max_position_embeddings
            tokenizer = self._processor.tokenizer
            self.cut += len(tokenizer(text, verbose=False)["input_ids"]) > most
            tokens = tokenizer(text, truncation=True, max_length=most, return_tensors="pt").to(self._device)
            self._known[text] = _unit(self._model.get_text_features(**tokens))
        return self._known[text]

    def references(self, paths: tuple[Path, ...]) -> Tensor:
        """Their mean, not of unit length: its product with e is the mean of the cosines."""
        if paths not in self._known:
            each = [self.picture(open_rgb(p, str(p))) for p in paths]
            self._known[paths] = torch.stack(each).mean(0)
        return self._known[paths]


class ClipJudge:
    """(picture, sample) -> the wanted figures of those in this file's equations."""

    def __init__(self, clip: Clip, figures: Sequence[str]) -> None:
        self._clip, self._figures = clip, figures

    @property
    def cut(self) -> int:
        return self._clip.cut

    def __call__(self, picture: Image.Image, sample: Sample) -> dict[str, float]:
        seen = self._clip.picture(picture)
        return {figure: self._score(figure, seen, sample) for figure in self._figures}

    def _score(self, figure: str, seen: Tensor, sample: Sample) -> float:
        clip, style = self._clip, sample.style
        if figure == "s_img":
            return float(seen @ clip.references(style.references))
        cosine = float(seen @ clip.text(style.description if figure == "clip_style" else sample.prompt))
        return cosine if figure == "s_txt" else clip.scale * cosine


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and tables of transformers: what does not fit is our error, in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(folder: Path) -> tuple[Any, Any]:
    """The model, in float32 and frozen, and its processor."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
        if kind != "clip":
            raise I2LError(f"{folder}: expected a CLIP, and its config.json says model_type {shown(kind)}")
        own: Any = {"local_files_only": True}
        with quiet():
            loaded: Any = CLIPModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **own
            )
            model, about = loaded
            processor = CLIPProcessor.from_pretrained(folder, **own)
    except I2LError:
        raise
    except Exception as error:  # the library raises anything for files that do not fit
        raise I2LError(f"{folder}: cannot read a CLIP from it: {first_line(error)}") from error
    # old files hold the positions 0, 1, 2, ... too
    wrong = {name for name in about["unexpected_keys"] if not name.endswith("position_ids")}
    wrong |= {*about["missing_keys"], *(name for name, *_ in about["mismatched_keys"])}
    if wrong:
        raise I2LError(
            f"{folder}: the weights are of another architecture than its config.json; tensors that only one "
            f"of them has, or in another size: {listed(sorted(wrong))}"
        )
    return model.float().requires_grad_(False).eval(), processor


def _unit(output: Any) -> Tensor:
    """(1, D), bare or in a model output, which is what newer versions give -> (D,)."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features[0].float(), dim=0)
