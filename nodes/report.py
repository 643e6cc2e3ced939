"""What a node says after a run: one line for the log and the API, and a card that the front end draws on it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ui

from ..i2l_core.card import Card, text_card


class NodeReport(ui.PreviewText):
    """The line under `text`, as core nodes give it, and the card under `i2l_card` (see `web/card.js`).

    The front end shows no `text` of nodes that it does not know: without a card, its lines are one.
    Schemas of nodes that report set `has_intermediate_output`: ComfyUI then reports for them when they are cached.
    """

    def __init__(self, text: str, card: Card | None = None) -> None:
        super().__init__(text)
        self.card = card or text_card(text)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "i2l_card": (self.card,)}
