"""The report of a node after a run: text for the log and the API, and a card that the front end draws."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ui

from ..i2l_core.card import Card, text_card


class NodeReport(ui.PreviewText):
    """The text under `text`, as in core nodes, and the card under `i2l_card` (see `web/card.js`).

    The front end shows `text` only for nodes that it knows, so without a card the lines of the text become one.
    Schemas of reporting nodes set `has_intermediate_output`: ComfyUI then repeats the report of cached nodes.
    """

    def __init__(self, text: str, card: Card | None = None) -> None:
        super().__init__(text)
        self.card = card or text_card(text)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "i2l_card": (self.card,)}
