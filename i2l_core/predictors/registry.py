"""The predictor families a file may name: for each, its configuration and its network."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..checks import shown
from ..errors import I2LError
from .query.network import QueryConfig, QueryPredictor


@dataclass(frozen=True)
class Family:
    """`config.from_json(object)` gives a checked configuration, `predictor(config, ...)` the network."""

    config: type[QueryConfig]
    predictor: type[QueryPredictor]


FAMILIES = MappingProxyType({"query": Family(QueryConfig, QueryPredictor)})


def family_named(name: Any) -> Family:
    """Raises I2LError when this version knows no such family."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise I2LError(f"predictor family {shown(name)} is not known (known: {', '.join(FAMILIES)})")
    return FAMILIES[name]


def family_of(predictor: object) -> str:
    """The name of a network's family."""
    for name, family in FAMILIES.items():
        if type(predictor) is family.predictor:
            return name
    raise I2LError(f"{type(predictor).__name__} is of no known predictor family")
