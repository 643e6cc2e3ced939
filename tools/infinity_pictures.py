"""The pictures of Infinity's workflows in the template browser; see template_pictures."""

from __future__ import annotations

from PIL import Image

from .card_drawing import ACCENT, GAP, INNER, MARGIN, SIDE, SMALL, SOFT, Card, Pictures, shipped


def infinity_style(card: Card, shown: Pictures) -> None:
    _from_one(card, "blueprint_1", shown["Without the style"][0], shown["In the style"][0])


def infinity_words(card: Card, shown: Pictures) -> None:
    card.box("neon, pink on blue\nthe style, in words", MARGIN, MARGIN, INNER, 130)
    card.arrow(SIDE / 2, MARGIN + 160)
    pictures = [shown[f"Picture {i}"][0] for i in (1, 2, 3)]
    side = (INNER - GAP) / 2
    top = MARGIN + 190
    for picture, left in zip(pictures, (MARGIN, MARGIN + side + GAP), strict=False):
        card.paste(picture, left, top, side)
    low = SIDE - MARGIN - top - side - GAP
    card.paste(pictures[2], (SIDE - low) / 2, top + side + GAP, low)


def infinity_alpha(card: Card, shown: Pictures) -> None:
    side = 250.0
    card.paste(shipped("glass_4")[0], (SIDE - side) / 2, MARGIN, side)
    card.badge("style", (SIDE + side) / 2, MARGIN + side)
    each = (INNER - 2 * GAP) / 3
    top = SIDE - MARGIN - each - 90
    card.arrow(SIDE / 2, (MARGIN + side + top) / 2)
    titles = ("alpha 0: all of it", "alpha 1: as in the paper", "alpha 5: the main colours")
    for i, (title, words) in enumerate(
        zip(titles, ("all of it", "as in the paper", "main colours"), strict=True)
    ):
        left = MARGIN + i * (each + GAP)
        card.paste(shown[title][0], left, top, each, ACCENT if i == 1 else "")
        card.text(f"alpha {(0, 1, 5)[i]}", left + each / 2, top + each + 30)
        card.text(words, left + each / 2, top + each + 66, SMALL, SOFT)


def infinity_two_prompts(card: Card, shown: Pictures) -> None:
    layout, details, both = (shown[name][0] for name in ("Layout alone", "Details alone", "Both"))
    side, large = 300.0, 360.0
    for picture, left, words in ((layout, MARGIN, "layout"), (details, SIDE - MARGIN - side, "details")):
        card.paste(picture, left, MARGIN, side)
        card.badge(words, left + side, MARGIN + side)
    card.text("+", SIDE / 2, MARGIN + side / 2, 62, ACCENT)
    card.arrow(SIDE / 2, MARGIN + side + 26, size=16)
    card.paste(both, (SIDE - large) / 2, SIDE - MARGIN - large, large, ACCENT)


def infinity_restyle(card: Card, shown: Pictures) -> None:
    _from_one(card, "neon_1", shown["As Infinity sees it"][0], shown["In the style"][0])


def _from_one(card: Card, style: str, before: Image.Image, after: Image.Image) -> None:
    """The style above; below the picture without and with it."""
    side, large = 290.0, (INNER - GAP) / 2
    card.paste(shipped(style)[0], (SIDE - side) / 2, MARGIN, side)
    card.badge("style", (SIDE + side) / 2, MARGIN + side)
    top = SIDE - MARGIN - large
    card.arrow(SIDE / 2, (MARGIN + side + top) / 2)
    card.paste(before, MARGIN, top, large)
    card.paste(after, MARGIN + large + GAP, top, large, ACCENT)


INFINITY = {
    "infinity_style": infinity_style,
    "infinity_words": infinity_words,
    "infinity_alpha": infinity_alpha,
    "infinity_two_prompts": infinity_two_prompts,
    "infinity_restyle": infinity_restyle,
}
