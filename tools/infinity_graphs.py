"""The graphs on the help pages of Infinity's nodes."""

from __future__ import annotations

from PIL import Image

from .graph_drawing import Box, Link, graph

_MODEL = Box("Load Infinity", (), ("model",))
_TEXTS = Box("Load Infinity Text Encoder", (), ("clip",))
_VAE = Box("Load Infinity VAE", (), ("vae",))
_PICTURE = Box("Load Image", (), ("image",))
_PROMPT = Box("CLIP Text Encode", ("clip",), ("conditioning",))
_ENCODE = Box("VAE Encode", ("pixels", "vae"), ("latent",))
_STYLE = Box("Infinity Style", ("vae", "image"), ("style",))
_WORDS = Box("Infinity Style from Words", ("conditioning",), ("style",))
_START = Box("Infinity Start from Picture", ("latent",), ("start",))
_DEMO = Box("Load Infinity Demo", (), ("model", "clip", "vae"))
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


def _by_words(shown: Box) -> Image.Image:
    sampler = _sampler("style")
    prompt, words = (
        Box(title, (), ("conditioning",)) for title in ("CLIP Text Encode", "Words of the style")
    )
    columns = [[words], [_MODEL, prompt, _WORDS], [sampler]]
    links = _links(
        (_MODEL, sampler, "model"),
        (prompt, sampler, "positive"),
        (words, _WORDS, "conditioning"),
        (_WORDS, sampler, "style"),
    )
    return graph(columns, links, shown.title)


def _started(shown: Box) -> Image.Image:
    sampler = _sampler("start")
    columns = [[_PICTURE, _VAE], [_ENCODE], [_START], [sampler]]
    links = _links(
        (_PICTURE, _ENCODE, "pixels"),
        (_VAE, _ENCODE, "vae"),
        (_ENCODE, _START, "latent"),
        (_START, sampler, "start"),
    )
    return graph(columns, links, shown.title)


def _demo(shown: Box) -> Image.Image:
    sampler = _sampler("style")
    columns = [[_PICTURE, _DEMO], [_PROMPT, _STYLE], [sampler]]
    links = [
        *(Link((_DEMO.title, name), (end.title, entry)) for name, end, entry in (
            ("model", sampler, "model"), ("clip", _PROMPT, "clip"), ("vae", _STYLE, "vae"),
        )),
        *_links((_PICTURE, _STYLE, "image"), (_PROMPT, sampler, "positive"), (_STYLE, sampler, "style")),
    ]  # fmt: skip
    return graph(columns, links, shown.title)


def pictures() -> dict[str, Image.Image]:
    """Node id -> its picture."""
    return {
        "LoadInfinity": _plain(_MODEL),
        "LoadInfinityTextEncoder": _plain(_TEXTS),
        "LoadInfinityVAE": _plain(_VAE),
        "InfinityStyle": _styled(_STYLE),
        "InfinityStyleFromWords": _by_words(_WORDS),
        "InfinityStartFromPicture": _started(_START),
        "InfinitySampler": _styled(_sampler()),
        "LoadInfinityDemo": _demo(_DEMO),
    }
