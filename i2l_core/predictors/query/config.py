"""The configuration of a query predictor, stored as JSON in its file. It validates itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ...checks import check_entries, check_int, check_number, shown
from ...errors import I2LError
from ...lora import Target

# the largest sizes a configuration may ask for: far above any real predictor, far below a lie that hurts
_LIMITS = {
    "hidden": 16384,
    "blocks": 128,
    "heads": 256,
    "code": 8192,
    "rank": 1024,
    "token_dim": 65536,
}
_MAX_LAYERS = 8192
_MAX_WIDTH = 1 << 20
_LAYER_ENTRIES = ("weight", "rows", "d_in", "d_out")


@dataclass(frozen=True)
class LayerSpec:
    """One adapted layer: a host weight (see `lora.Target`) or the rows (start, length) of a fused one."""

    weight: str
    rows: tuple[int, int] | None
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        if not isinstance(self.weight, str) or not self.weight:
            raise I2LError(f"an adapted layer needs the name of a weight, got {shown(self.weight)}")
        for name in ("d_in", "d_out"):
            check_int(f"{name} of {self.weight}", getattr(self, name), _MAX_WIDTH)
        if self.rows is None:
            return
        pair = len(self.rows) == 2 and all(type(n) is int for n in self.rows)
        if not pair or not 0 <= self.rows[0] < _MAX_WIDTH:
            raise I2LError(f"rows of {self.weight} must be (start, length) or none, got {shown(self.rows)}")
        if self.rows[1] != self.d_out:
            raise I2LError(f"{self.weight}: {self.rows[1]} rows, but d_out is {self.d_out}")

    @property
    def target(self) -> Target:
        return Target(self.weight, self.rows)


@dataclass(frozen=True)
class QueryConfig:
    """All sizes of a QueryNetwork. Raises I2LError if a size is out of bounds."""

    hidden: int  # width of the transformer
    blocks: int  # number of transformer blocks
    heads: int  # attention heads; hidden / heads is the width of one
    code: int  # compressed width c between a query state and a row (or column)
    rank: int  # k: rows of each A, columns of each B
    token_dim: int  # D: width of the vision encoder's tokens
    layers: tuple[LayerSpec, ...]  # the L adapted layers; their order fixes the order of the stored heads
    mlp_ratio: float = 4.0  # width of a block's MLP over `hidden`
    alpha: float = 1.0  # initial value of every alpha_l

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            check_int(f"predictor {name}", getattr(self, name), limit)
        if self.hidden % self.heads:
            raise I2LError(f"predictor hidden {self.hidden} is not a multiple of its {self.heads} heads")
        for name, limit in (("mlp_ratio", 16.0), ("alpha", 1e4)):
            check_number(f"predictor {name}", getattr(self, name), 0, limit)
        if not 1 <= len(self.layers) <= _MAX_LAYERS:
            raise I2LError(f"a predictor adapts 1 to {_MAX_LAYERS} layers, got {len(self.layers)}")
        seen: dict[str, list[LayerSpec]] = {}
        for layer in self.layers:
            for other in seen.setdefault(layer.weight, []):
                if _overlap(layer.rows, other.rows):
                    raise I2LError(f"adapted layers overlap: {other.target} and {layer.target}")
                if layer.d_in != other.d_in:
                    raise I2LError(f"d_in differs inside one weight: {other.target} and {layer.target}")
            seen[layer.weight].append(layer)

    @property
    def mlp(self) -> int:
        return max(1, round(self.hidden * self.mlp_ratio))

    @property
    def n_queries(self) -> int:
        return 2 * self.rank * len(self.layers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> QueryConfig:
        """The inverse of `to_json`. Raises I2LError naming an unknown, missing or wrong entry."""
        data = check_entries("predictor", data, (field.name for field in fields(cls)))
        if not isinstance(data["layers"], (list, tuple)):
            raise I2LError(f"predictor layers must be a list, got {type(data['layers']).__name__}")
        if len(data["layers"]) > _MAX_LAYERS:
            raise I2LError(f"a predictor adapts 1 to {_MAX_LAYERS} layers, got {len(data['layers'])}")
        layers = []
        for i, entry in enumerate(data["layers"]):
            entry = check_entries(f"predictor layers[{i}]", entry, _LAYER_ENTRIES)
            rows = entry["rows"]
            if rows is not None and not isinstance(rows, (list, tuple)):
                raise I2LError(f"predictor layers[{i}] rows must be a pair or null, got {shown(rows)}")
            layers.append(LayerSpec(**{**entry, "rows": None if rows is None else tuple(rows)}))
        return cls(**{**data, "layers": tuple(layers)})


def _overlap(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    return a is None or b is None or (a[0] < b[0] + b[1] and b[0] < a[0] + a[1])
