"""Start the real ComfyUI on folders of its own, and stop it whatever happens.

Models, inputs, outputs, settings and the database live under one base folder, so nothing that belongs to the
installation or to its user is read or written. The only pack in its custom_nodes is this one, as a link.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from .comfy_client import ComfyClient, ComfyError
from .host import PACK_FOLDER, ROOT, Host, find_host

START_SECONDS = 300.0
STOP_SECONDS = 10.0
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Linux ends the server when the process that started it dies, even by SIGKILL: 1 is PR_SET_PDEATHSIG.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


class ComfyServer:
    """One server process; use it as a context manager.

    base: folder for everything that the server reads and writes; made if missing.
    output: where pictures are saved, if not in base/output.
    options: further command line options of ComfyUI's main.py.
    """

    def __init__(
        self,
        base: Path,
        host: Host | None = None,
        output: Path | None = None,
        options: Sequence[str] = ("--cpu",),
    ) -> None:
        self.base = base.resolve()
        self.host = host or find_host()
        self.output = (output or self.base / "output").resolve()
        self.input = self.base / "input"
        self.log_path = self.base / "server.log"
        self.port = 0
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the server's process. Raises ComfyError when it is not running."""
        if self._process is None:
            raise ComfyError("The server is not running: call start() first.")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has printed so far, without colours."""
        if not self.log_path.exists():
            return ""
        return _COLOUR.sub("", self.log_path.read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    def client(self) -> ComfyClient:
        return ComfyClient(self.url)

    def command(self, *more: str) -> list[str]:
        """The command line, on the port and folders of this server."""
        return [
            str(self.host.python),
            str(self.host.path / "main.py"),
            *self._options,
            "--disable-api-nodes",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--output-directory",
            str(self.output),
            "--database-url",
            f"sqlite:///{self.base / 'user' / 'comfyui.db'}",
            *(("--front-end-root", str(self.host.front_end)) if self.host.front_end else ()),
            *more,
        ]

    def prepare(self) -> None:
        """Make the folders and link the pack into custom_nodes."""
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK_FOLDER
        if not link.exists():  # a test may have put a copy there
            link.symlink_to(ROOT, target_is_directory=True)

    def start(self, waiting: Callable[[float], None] | None = None, port: int = 0) -> None:
        """Start and wait until the server answers; meanwhile `waiting` is called with the seconds so far.

        `port` 0: a free one. Raises ComfyError with the end of the log when the server exits or does not answer
        in START_SECONDS.
        """
        if self._process is not None:
            raise ComfyError("The server has been started already: call stop() first.")
        self.prepare()
        self.port = port or _free_port()
        command = [str(self.host.python), "-c", _LAUNCHER, *self.command()]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        if not self.host.own:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"  # not even a cache file in somebody's installation
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.base,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches us, and we stop the server in order
            )
        atexit.register(self.stop)
        try:
            self._wait(waiting)
        except BaseException:
            self.stop()
            raise

    def _wait(self, waiting: Callable[[float], None] | None) -> None:
        assert self._process is not None
        started = time.monotonic()
        client = self.client()
        while not client.answers():
            seconds = time.monotonic() - started
            code = self._process.poll()
            if code is not None:
                raise ComfyError(
                    f"ComfyUI exited with {code} while starting. Its log ends:\n{self.log_tail()}"
                )
            if seconds > START_SECONDS:
                raise ComfyError(
                    f"ComfyUI did not answer in {START_SECONDS:.0f} s. Its log ends:\n{self.log_tail()}"
                )
            if waiting is not None:
                waiting(seconds)
            time.sleep(0.5)

    def stop(self) -> None:
        """End the server and all it started: politely, then by force. Harmless when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        for kind in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, kind)
            except ProcessLookupError:
                pass  # gone already
            try:
                process.wait(STOP_SECONDS)
                return
            except subprocess.TimeoutExpired:
                continue
        raise ComfyError(f"The ComfyUI process {process.pid} did not end.")

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
