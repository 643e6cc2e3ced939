"""The pool of the demo world as a data set. Styles and contents are known; prompts describe only the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..demo.pool import POOL_FOLDER, Pool, PoolConfig, open_pool
from ..demo.prompts import content_prompt
from .base import Texts
from .config import DataTable
from .data.data_set import Picture


@dataclass(frozen=True)
class Generated:
    pool: Pool
    pictures: Sequence[Picture]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pool.pictures[divmod(index, self.pool.pictures.shape[1])])

    def version(self, index: int) -> str:
        return self.pictures[index].name

    def latent(self, index: int) -> Tensor | None:
        return None

    def texts(self, index: int) -> Texts | None:
        return None


def open_generated(table: DataTable) -> Generated:
    """Render the pool, or open the one that the same table has rendered before."""
    config = PoolConfig(table.styles, table.per_style, table.pool_seed, held_out=False)
    pool = open_pool(Path(table.path) if table.path else POOL_FOLDER, config)
    pictures = []
    for number, row in enumerate(pool.contents):
        for content in row:
            prompt = content_prompt(content)
            # part of the fingerprint that a resumed run is checked by
            name = f"tiny world style {number} ({pool.styles[number].name}), {prompt}"
            pictures.append(Picture(f"{number:06d}", prompt, prompt, name))
    return Generated(pool, pictures)
