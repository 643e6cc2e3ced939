"""What ComfyUI asks the pack when it starts."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import NODES, on_load


class I2LExtension(ComfyExtension):
    async def on_load(self) -> None:
        await on_load()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
