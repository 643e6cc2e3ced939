"""Talk to a running ComfyUI as its front end does: HTTP for requests, a websocket for what happens meanwhile.

Needs aiohttp, which every ComfyUI has.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Prompt = Mapping[str, Mapping[str, Any]]

# a proxy of the environment must not see requests to this machine
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ComfyError(RuntimeError):
    """The server could not start, or could not be asked."""


class PromptRefused(ComfyError):
    """The server found the prompt invalid; `answer` is what it said, with `error` and `node_errors`."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.answer = answer
        super().__init__(_refusal(answer))


@dataclass(frozen=True)
class Event:
    """One websocket message.

    type: `execution_start`, `progress`, `executed`, ...
    seconds: from queueing the prompt to receiving the message.
    """

    type: str
    data: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Result:
    """What became of one prompt.

    status: "success", "error" or "interrupted".
    outputs: node id -> what the node showed, e.g. {"images": [{"filename", "subfolder", "type"}]}.
    error: the data of `execution_error` (node_id, node_type, exception_message, traceback, ...), or None.
    """

    prompt_id: str
    status: str
    outputs: Mapping[str, Mapping[str, Any]]
    events: tuple[Event, ...]
    error: Mapping[str, Any] | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == "success"

    @property
    def error_message(self) -> str:
        """One line about what went wrong; empty when nothing did."""
        if self.error is None:
            return "" if self.ok else f"The run was {self.status}."
        return f"{self.error.get('node_type')}: {str(self.error.get('exception_message', '')).strip()}"

    @property
    def executed(self) -> tuple[str, ...]:
        """Ids of the nodes that ran, in order; those answered from the cache are not among them."""
        nodes = [event.data.get("node") for event in self.events if event.type == "executing"]
        return tuple(str(node) for node in nodes if node is not None)

    @property
    def cached(self) -> tuple[str, ...]:
        """Ids of the nodes whose earlier result was used again."""
        found = [event.data.get("nodes", []) for event in self.events if event.type == "execution_cached"]
        return tuple(str(node) for nodes in found for node in nodes)

    def images(self, node: str | int | None = None) -> list[Mapping[str, str]]:
        """The pictures of one node, or of all nodes in the order of their ids."""
        keys = [str(node)] if node is not None else sorted(self.outputs, key=lambda key: (len(key), key))
        return [image for key in keys for image in self.outputs.get(key, {}).get("images", [])]


class ComfyClient:
    """Requests to the server at `url`, e.g. "http://127.0.0.1:8188"."""

    def __init__(self, url: str) -> None:
        self.url = url

    def answers(self) -> bool:
        try:
            self.get("/system_stats", timeout=5)
        except (OSError, ComfyError):
            return False
        return True

    def get(self, path: str, timeout: float = 60) -> Any:
        """The JSON at a path. Raises ComfyError on an HTTP error, OSError when there is no server."""
        return json.loads(self.get_bytes(path, timeout))

    def get_bytes(self, path: str, timeout: float = 60) -> bytes:
        return _open(self.url + path, None, timeout)

    def post(self, path: str, body: Mapping[str, Any], timeout: float = 60) -> Any:
        """Post JSON; the JSON answer, or None where the server answers with nothing."""
        answer = _open(self.url + path, json.dumps(body).encode(), timeout)
        return json.loads(answer) if answer.strip() else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The schema of every node class, or of one (empty when the server does not have it)."""
        return self.get("/object_info" if node is None else f"/object_info/{urllib.parse.quote(node)}")

    def image(self, picture: Mapping[str, str]) -> bytes:
        """The file of one entry of `Result.images()`."""
        return self.get_bytes("/view?" + urllib.parse.urlencode(picture))

    def upload(self, name: str, picture: bytes) -> str:
        """Put a picture into the server's input folder; returns the name it got, for LoadImage."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + picture + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return json.loads(_open(self.url + "/upload/image", body, 60, kind))["name"]

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def queue(
        self,
        prompt: Prompt,
        on_event: Callable[[Event], None] | None = None,
        timeout: float = 600,
    ) -> Result:
        """Queue a prompt in API form and wait for its end.

        Raises PromptRefused, or ComfyError after `timeout` seconds. An error inside a node is not raised:
        it is in `Result.error`.
        """
        import aiohttp

        try:
            return asyncio.run(asyncio.wait_for(self._queue(prompt, on_event), timeout))
        except asyncio.TimeoutError:
            raise ComfyError(f"The prompt did not end within {timeout:.0f} s.") from None
        except aiohttp.ClientError as error:
            raise ComfyError(f"The connection to ComfyUI broke: {type(error).__name__}: {error}.") from error

    async def _queue(self, prompt: Prompt, on_event: Callable[[Event], None] | None) -> Result:
        import aiohttp

        client = uuid.uuid4().hex
        started = time.monotonic()
        events: list[Event] = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket,
        ):
            async with session.post(
                f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}
            ) as response:
                answer = await response.json()
            if "prompt_id" not in answer:
                raise PromptRefused(answer)
            prompt_id = answer["prompt_id"]
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue  # a binary preview
                event = _event(message.data, started)
                if event.data.get("prompt_id") not in (None, prompt_id):
                    continue
                events.append(event)
                if on_event is not None:
                    on_event(event)
                if event.type == "executing" and event.data.get("node") is None:
                    break  # sent once the history is written
            else:
                raise ComfyError("The server closed the connection while the prompt was running.")
        return self._result(prompt_id, events, time.monotonic() - started)

    def _result(self, prompt_id: str, events: list[Event], seconds: float) -> Result:
        ends = {event.type: event.data for event in events}
        status = (
            "error"
            if "execution_error" in ends
            else "interrupted"
            if "execution_interrupted" in ends
            else "success"
            if "execution_success" in ends
            else "unknown"
        )
        history = self.get(f"/history/{prompt_id}").get(prompt_id, {})
        return Result(
            prompt_id=prompt_id,
            status=status,
            outputs=history.get("outputs", {}),
            events=tuple(events),
            error=ends.get("execution_error"),
            seconds=seconds,
        )


def _open(url: str, body: bytes | None, timeout: float, kind: str = "application/json") -> bytes:
    headers = {"Content-Type": kind} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode("utf-8", "replace")[:500]
        raise ComfyError(f"{request.get_method()} {url} gave HTTP {error.code}: {text}") from None


def _event(text: str, started: float) -> Event:
    message = json.loads(text)
    return Event(message["type"], message.get("data") or {}, time.monotonic() - started)


def _refusal(answer: Mapping[str, Any]) -> str:
    """The server's words on an invalid prompt, one line per complaint."""
    error = answer.get("error") or {}
    lines = [f"{error.get('message', 'invalid prompt')} {error.get('details', '')}".strip()]
    for node, found in (answer.get("node_errors") or {}).items():
        for item in found.get("errors", []):
            text = f"{item.get('message', '')}: {item.get('details', '')}"
            lines.append(f"node {node} ({found.get('class_type')}): {text}")
    return "\n".join(lines)
