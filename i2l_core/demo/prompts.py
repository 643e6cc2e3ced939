"""Prompts of the demo world: from contents and styles, and their word tokens."""

from __future__ import annotations

import logging
import re

from .content import COUNTS, PLACES, SUBJECTS, Content
from .style import HUE_NAMES, TECHNIQUES, Style, hue_name

TOKENS = 16  # every prompt is this long, so that cond and uncond always share one batch
PAD, UNKNOWN = 0, 1
_GLUE = ("on", "the", "at", "in", "a", "of", "and", "with", "picture")
_PLURALS = {"stars": "star", "hearts": "heart", "moons": "moon", "flowers": "flower", "trees": "tree"} | {
    "houses": "house",
    "mushrooms": "mushroom",
    "an": "a",
    "watercolor": "watercolour",
    "centre": "middle",
    "center": "middle",
    "1": "one",
    "2": "two",
    "3": "three",
}
VOCABULARY = ("<pad>", "<unknown>", *COUNTS, *SUBJECTS, *PLACES, *TECHNIQUES, *HUE_NAMES, *_GLUE)
_IDS = {word: i for i, word in enumerate(VOCABULARY)}


def content_prompt(content: Content) -> str:
    """The prompt of a content: "two fish on the left"."""
    place = PLACES[content.place]
    where = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
    return f"{COUNTS[content.count]} {SUBJECTS[content.subject]} {where.get(place, 'in the middle')}"


def style_prompt(style: Style) -> str:
    """The prompt of a style, as far as words describe it: "neon, pink on blue"."""
    return f"{style.name}, {hue_name(style.figure_hue)} on {hue_name(style.ground_hue)}"


def words_of(text: str) -> list[str]:
    spelled: list[str] = re.findall(r"\w+", text.lower())
    return [_PLURALS.get(word, word) for word in spelled]


def unknown_words(text: str) -> list[str]:
    """The unknown words of a prompt, each once."""
    return sorted({word for word in words_of(text) if word not in _IDS})


def tokenise(text: str) -> list[int]:
    """TOKENS token ids; unknown words become UNKNOWN, long prompts are cut. Both are logged."""
    words, unknown = words_of(text), unknown_words(text)
    if unknown:
        logging.info("i2L demo: the demo model does not know %s", ", ".join(unknown[:5]))
    if len(words) > TOKENS:
        logging.info("i2L demo: prompt cut after %d words", TOKENS)
    ids = [_IDS.get(w, UNKNOWN) for w in words[:TOKENS]]
    return ids + [PAD] * (TOKENS - len(ids))
