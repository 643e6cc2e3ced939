"""ComfyUI-i2L: reference pictures in, a style LoRA out. The nodes are in `nodes`, the work in `i2l_core`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"


class I2LExtension(ComfyExtension):
    async def on_load(self) -> None:
        from .nodes import on_load

        await on_load()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import NODES

        return list(NODES)


async def comfy_entrypoint() -> I2LExtension:
    return I2LExtension()
