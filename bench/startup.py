"""How long the pack keeps ComfyUI from starting: `python -m bench.startup --json`.

The figure is the server's own: the "Import times for custom nodes" line that it logs for this pack, the
median of a few starts. That line has one decimal, so the same import is also timed finely, each time in a new
Python that has imported what the host has by then and loads the pack as the host does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.comfy_server import ComfyServer
from tools.host import PACK_FOLDER, ROOT, Host, find_host
from tools.startup_times import import_times

_FINE = """
import asyncio, pathlib, sys, time
host, base, pack = sys.argv[1:4]
sys.path.insert(0, host)
import comfy.cli_args
comfy.cli_args.args.cpu = True
comfy.cli_args.args.base_directory = base
import execution, server, nodes
from comfy_config import config_parser
known = set(sys.modules)
started = time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(pack, set()))
print(time.perf_counter() - started, int(loaded), len(set(sys.modules) - known))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="How long the pack keeps ComfyUI from starting.")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--runs", type=int, default=3, help="starts of the server (default 3)")
    options = parser.parse_args()
    result = measure(find_host(), options.runs)
    print(
        f"import of the pack: {result['pack_seconds']:.1f} s by the server's own line, "
        f"{result['pack_seconds_fine']:.3f} s timed finely ({result['modules']} modules); "
        f"server ready after {result['ready_seconds']:.1f} s"
    )
    if options.json:
        print(json.dumps(result))


def measure(host: Host, runs: int) -> dict[str, Any]:
    """Medians over `runs` starts. Seconds."""
    pack: list[float] = []
    ready: list[float] = []
    fine: list[float] = []
    others: dict[str, list[float]] = {}
    modules = 0
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="i2l-startup-") as folder:
            server = ComfyServer(Path(folder), host)
            started = time.perf_counter()
            with server:
                ready.append(time.perf_counter() - started)
                times = import_times(server.log)
            for found in times:
                if not found.loaded:
                    raise RuntimeError(f"{found.pack} did not load: {server.log_tail()}")
                (pack if found.pack == PACK_FOLDER else others.setdefault(found.pack, [])).append(
                    found.seconds
                )
            seconds, modules = _fine(server)
            fine.append(seconds)
    return {
        "pack_seconds": statistics.median(pack),
        "pack_seconds_fine": round(statistics.median(fine), 4),
        "modules": modules,
        "others": {name: statistics.median(times) for name, times in others.items()},
        "ready_seconds": round(statistics.median(ready), 2),
        "runs": runs,
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def _fine(server: ComfyServer) -> tuple[float, int]:
    """(seconds, number of modules that the pack brings in) of one import in a fresh process."""
    pack = server.base / "custom_nodes" / PACK_FOLDER
    command = [server.host.python, "-c", _FINE, server.host.path, server.base, pack]
    done = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, cwd=server.base
    )
    seconds, loaded, modules = done.stdout.split()[-3:]
    if loaded != "1":
        raise RuntimeError(f"{ROOT} did not load: {done.stderr[-2000:]}")
    return float(seconds), int(modules)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
