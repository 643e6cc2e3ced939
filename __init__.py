"""ComfyUI-i2L: reference pictures in, a style LoRA out. The nodes are in `nodes`, the work in `i2l_core`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .i2l_core.errors import I2LError

if TYPE_CHECKING:
    from .nodes.extension import I2LExtension

WEB_DIRECTORY = "./web"

try:
    from .i2l_core import host  # noqa: F401 it checks that this ComfyUI is new enough, and has what the pack uses
except I2LError as error:
    logging.error("ComfyUI-i2L: %s", error)
    NODE_CLASS_MAPPINGS = {}  # hides the entry point: a pack without nodes, and not one that failed with a traceback


async def comfy_entrypoint() -> I2LExtension:
    from .nodes.extension import I2LExtension

    return I2LExtension()
