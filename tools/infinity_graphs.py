"""The graphs on the help pages of Infinity's nodes."""

from __future__ import annotations

from PIL import Image

from .graph_drawing import Box, Link, graph

_MODEL = Box("Load Infinity", (), ("model",))
_TEXTS = Box("Load Infinity Text Encoder", (), ("clip",))
_VAE = Box("Load Infinity VAE", (), ("vae",))
_PICTURE = Box("Load Image", (), ("image",))
_PROMPT = Box("CLIP Text Encode", ("clip",), ("conditioning",))
_STYLE = Box("Infinity Style", ("vae", "image"), ("style",))
_DECODE = Box("VAE Decode", ("samples", "vae"), ("image",))


def _sampler(*more: str) -> Box:
    return Box("Infinity Sampler", ("model", "positive", *more), ("latent",))


def _links(*ends: tuple[Box, Box, str]) -> list[Link]:
    """From the one output of a node to an input."""
    return [Link((start.title, start.outputs[0]), (end.title, entry)) for start, end, entry in ends]


def _plain(shown: Box) -> Image.Image:
    """Without a style."""
    sampler = _sampler()
    columns = [[_TEXTS], [_MODEL, _PROMPT], [sampler, _VAE], [_DECODE]]
    links = _links(
        (_MODEL, sampler, "model"),
        (_TEXTS, _PROMPT, "clip"),
        (_PROMPT, sampler, "positive"),
        (sampler, _DECODE, "samples"),
        (_VAE, _DECODE, "vae"),
    )
    return graph(columns, links, shown.title)


def _styled(shown: Box) -> Image.Image:
    sampler, prompt = _sampler("style"), Box("CLIP Text Encode", (), ("conditioning",))
    columns = [[_VAE, _PICTURE], [_MODEL, prompt, _STYLE], [sampler]]
    links = _links(
        (_MODEL, sampler, "model"),
        (prompt, sampler, "positive"),
        (_VAE, _STYLE, "vae"),
        (_PICTURE, _STYLE, "image"),
        (_STYLE, sampler, "style"),
    )
    return graph(columns, links, shown.title)


def pictures() -> dict[str, Image.Image]:
    """Node id -> its picture."""
    return {
        "LoadInfinity": _plain(_MODEL),
        "LoadInfinityTextEncoder": _plain(_TEXTS),
        "LoadInfinityVAE": _plain(_VAE),
        "InfinitySampler": _styled(_sampler()),
    }
