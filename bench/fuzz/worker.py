"""Cases in a process with limits: it is ended by the system when one takes too long, and another goes on."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from .case import Maker, judge

SECONDS, BYTES = 2.0, 256 << 20  # of processor time, of memory: for a file of at most 1 MB
_PATIENCE = 120.0  # seconds on the clock without a word from the process
_ROOM = 4 << 30  # bytes more than at its start that the process may ever ask for: protects the machine
_WARM = 6  # cases of each kind before limits hold: what is imported where it is first used


@dataclass(frozen=True)
class Failure:
    number: int
    kind: str
    verdict: str  # "raw", "hang" or "wrong"
    reason: str
    content: bytes


def makers() -> dict[str, Maker]:
    from . import hosted, inputs, loras, names, pictures, predictors, templates, texts

    return {
        name: maker
        for module in (hosted, inputs, loras, names, pictures, predictors, templates, texts)
        for name, maker in module.MAKERS.items()
    }


def failures(
    seed: int, numbers: range, kinds: tuple[str, ...], until: float = float("inf")
) -> Iterator[tuple[int, Failure | None]]:
    """(how far it is, what failed, or None) after every failure, and some time in between."""
    context = multiprocessing.get_context("spawn")
    at = numbers.start
    while at < numbers.stop and time.monotonic() < until:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(theirs, seed, range(at, numbers.stop), kinds), daemon=True
        )
        process.start()
        theirs.close()
        kind, content = "", b""
        try:
            while time.monotonic() < until and at < numbers.stop:
                if not ours.poll(_PATIENCE):
                    break
                said = ours.recv()
                if said == "warm":
                    continue
                if isinstance(said, Failure):
                    yield at, said
                elif said is None:
                    at += 1
                    yield at, None
                else:
                    at, kind, content = said
        except EOFError:
            pass
        done = at >= numbers.stop or time.monotonic() >= until
        if not done:
            process.join(1)
            code = process.exitcode
            slow = code is None or code == -signal.SIGPROF
            verdict, reason = (
                ("hang", f"more than {SECONDS:g} s") if slow else ("raw", f"the process ended with {code}")
            )
            yield at + 1, Failure(at, kind, verdict, reason, content)
            at += 1
        process.kill()
        process.join()


def _work(pipe: Connection, seed: int, numbers: range, kinds: tuple[str, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = {name: maker for name, maker in makers().items() if not kinds or name in kinds}
    names = sorted(made)
    for name in names:
        for number in range(_WARM):
            with _folder() as folder:
                judge(made[name](random.Random(f"{number}"), folder))
            pipe.send("warm")
    _limit_memory()
    most = _peak()
    for number in numbers:
        name = names[number % len(names)]
        with _folder() as folder:
            try:
                case = made[name](random.Random(f"{seed} {number} {name}"), folder)
            except Exception as error:  # a fault of the fuzzer; the process may not end by itself
                pipe.send(Failure(number, name, "raw", f"the case cannot be made: {error!r:.300}", b""))
                pipe.send(None)
                continue
            pipe.send((number, name, case.content[:4096]))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, in whatever it is
            verdict, reason = judge(case)
            signal.setitimer(signal.ITIMER_PROF, 0)
        used, most = _peak() - most, max(most, _peak())
        if used > BYTES:
            verdict, reason = "hang", f"{used >> 20} MB"
        if verdict in ("raw", "wrong", "hang"):
            pipe.send(Failure(number, name, verdict, reason, case.content))
        pipe.send(None)


class _folder:
    """An empty folder for one case. Not TemporaryDirectory: names in it may be such that Python cannot list them."""

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="i2l-fuzz-case-"))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_memory() -> None:
    held = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")
    )
    limit = int(held.split()[1]) * 1024 + _ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
