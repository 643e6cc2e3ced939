"""A long night: prompts without a pause on a real server, some interrupted, some after its memory was cleared.

    python -m bench.soak --json [--prompts 500] [--workflows infinity_style infinity_words ...] [--seed 0]

Shipped workflows of the demo models in random order, with random seeds. Before and after all of them, and now and then
between, each workflow runs with its own seed: its pictures must be those of the first time, to the bit. `resident_mb`:
memory of the server's process, by the number of prompts; `drift` is its change from a third of them to the end.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tools.comfy_client import ComfyClient, Event
from tools.comfy_server import ComfyServer
from tools.template_pictures import TINY, prompt_of

from ._measure import machine

_INTERRUPTED, _CLEARED, _CHECKED = 0.3, 0.05, 0.1  # shares of the prompts
_ATTEMPTS = 200  # of an interrupt, before the prompt is over
_SEEDS = ("seed", "noise_seed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--workflows", nargs="+", default=list(TINY), choices=list(TINY))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="i2l-soak-") as base, ComfyServer(Path(base)) as server:
        night = Night(server, options.workflows, options.seed, not options.json)
        result = night.run(options.prompts)
    print(json.dumps({**result, "machine": machine(torch.device("cpu"))}))


class Night:
    def __init__(self, server: ComfyServer, workflows: Sequence[str], seed: int, talk: bool) -> None:
        self._client: ComfyClient = server.client()
        self._pid = server.pid
        self._prompts = {name: prompt_of(self._client, name) for name in workflows}
        self._random = random.Random(seed)
        self._talk = talk
        self._first: dict[str, list[bytes]] = {}
        self._counts = dict.fromkeys(("done", "interrupted", "cleared", "failed", "checked", "different"), 0)
        self._errors: list[str] = []

    def run(self, prompts: int) -> dict[str, Any]:
        started, resident = time.monotonic(), {}
        for name in self._prompts:
            self._check(name)
        for number in range(1, prompts + 1):
            self._one()
            if number % max(1, prompts // 30) == 0:
                resident[number] = round(resident_mb(self._pid), 1)
                if self._talk:
                    sys.stderr.write(f"{number}: {self._counts}, {resident[number]} MB\n")
        for name in self._prompts:
            self._check(name)
        later = [mb for number, mb in resident.items() if number >= prompts / 3]
        return {
            "workflows": list(self._prompts),
            "prompts": prompts,
            **self._counts,
            "errors": self._errors[:10],
            "resident_mb": resident,
            "drift": round(later[-1] / later[0] - 1, 4),
            "seconds": round(time.monotonic() - started),
        }

    def _one(self) -> None:
        name, chance = self._random.choice(list(self._prompts)), self._random.random()
        if self._random.random() < _CLEARED:
            self._client.post("/free", {"unload_models": True, "free_memory": True})
            self._counts["cleared"] += 1
        if chance < _CHECKED:
            self._check(name)
            return
        prompt = copy.deepcopy(self._prompts[name])
        for node in prompt.values():
            for key in _SEEDS:
                if isinstance(node["inputs"].get(key), int):
                    node["inputs"][key] = self._random.randrange(2**32)
        stop_at = self._random.randrange(1, 12) if chance < _CHECKED + _INTERRUPTED else 0
        seen = 0

        def watch(event: Event) -> None:
            nonlocal seen
            seen += event.type in ("progress", "executing")
            if stop_at and stop_at <= seen < stop_at + _ATTEMPTS:
                self._client.interrupt()

        result = self._client.queue(prompt, watch)
        if result.status == "interrupted":
            self._counts["interrupted"] += 1
        elif result.ok:
            self._counts["done"] += 1
        else:
            self._failed(name, result.error_message)

    def _check(self, name: str) -> None:
        """Its own seed, past the server's cache: the pictures of the first time."""
        self._client.post("/free", {"free_memory": True})
        result = self._client.queue(self._prompts[name])
        if not result.ok:
            self._failed(name, result.error_message)
            return
        pictures = [self._client.image(picture) for picture in result.images()]
        self._counts["checked"] += 1
        self._counts["different"] += pictures != self._first.setdefault(name, pictures)

    def _failed(self, name: str, message: str) -> None:
        self._counts["failed"] += 1
        self._errors.append(f"{name}: {message}")


def resident_mb(pid: int) -> float:
    """Memory of a process in use, in MB; Linux alone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


if __name__ == "__main__":
    main()
