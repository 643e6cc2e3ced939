"""Replacements of nodes of earlier versions, so that saved workflows with old nodes still open and run.

The published surface does not change (tests/surface.json). A node that needs more than new optional inputs at its end
gets a new id, and its old id gets an entry here: where its inputs and outputs went, and in `old_widget_ids` the order
in which workflows stored its widget values. The server replaces the node in queued prompts; the front end offers to
replace it in opened workflows. Entries are never removed.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io

REPLACED: tuple[io.NodeReplace, ...] = ()


async def register_replaced() -> None:
    """Register the replacements with ComfyUI, once, when it starts."""
    for entry in REPLACED:
        await ComfyAPI().node_replacement.register(entry)
