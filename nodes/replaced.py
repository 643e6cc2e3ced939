"""What replaces nodes of earlier versions, so that saved workflows and graphs which hold one still open and run.

What is published stays (tests/surface.json). A node that must change in any other way than by more optional inputs
at its end gets a new id, and here an entry for its old one: where its inputs and outputs went, and in
`old_widget_ids` the order in which workflows stored the values of its widgets. The server replaces it in what is
queued, the front end offers to do so in what is opened. Entries stay for good.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io

REPLACED: tuple[io.NodeReplace, ...] = ()


async def register_replaced() -> None:
    """Tell ComfyUI; once, when it starts."""
    for entry in REPLACED:
        await ComfyAPI().node_replacement.register(entry)
