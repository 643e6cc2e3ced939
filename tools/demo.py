"""`make demo`: style pictures from the shipped references, on a real ComfyUI, and say where they are.

Starts ComfyUI on folders of its own, queues a workflow file of this pack as the front end would, and draws
every prompt with the same seed, without the LoRA and with that of each style; then with the demo's Infinity in the
style of one picture each. Writes only into demo_output/.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import api_graph
from .comfy_client import ComfyClient, ComfyError, Event, Result
from .comfy_server import ComfyServer
from .graph_to_api import GraphError, graph_to_api
from .host import ROOT, Host, HostError, find_host

WORKFLOW = ROOT / "workflows" / "start_here.json"
INFINITY_WORKFLOW = ROOT / "workflows" / "infinity_style.json"
REFERENCES = ROOT / "workflows" / "references"
OUTPUT = ROOT / "demo_output"
PROMPTS = (
    "two stars in the middle",
    "one house on the left",
    "three fish at the top",
    "one mushroom in the middle",
)
RERUN = "I2L_DEMO_RERUN"  # set in the process that runs with the host's Python


def main() -> None:
    options = _options()
    try:
        host = find_host()
        _use_python_of(host)
        say(
            f"ComfyUI: {host.path}"
            + ("" if host.own else " (yours: nothing is installed into it or changed in it)")
        )
        run_demo(host, options)
    except (HostError, ComfyError, GraphError, api_graph.PromptError, OSError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: stopped")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="Style pictures from the shipped references.")
    parser.add_argument(
        "--workflow", type=Path, default=WORKFLOW, help="workflow file saved by the front end"
    )
    parser.add_argument("--references", type=Path, default=REFERENCES, help="folder of reference pictures")
    parser.add_argument(
        "--styles", nargs="*", help="only these styles (names before the number; default: all)"
    )
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help="texts to draw")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder that gets a new numbered folder")
    parser.add_argument("--sheet", type=Path, help="also write the contact sheet here, over what is there")
    return parser.parse_args()


def _use_python_of(host: Host) -> None:
    """Go on in the Python that has the requirements of ComfyUI, unless this is it."""
    if Path(sys.executable) == host.python:
        return
    if RERUN not in os.environ:
        command = [str(host.python), "-m", "tools.demo", *sys.argv[1:]]
        os.chdir(ROOT)
        os.execve(str(host.python), command, {**os.environ, RERUN: "1"})
    for package in ("aiohttp", "PIL"):
        if importlib.util.find_spec(package) is None:
            raise HostError(
                f"{host.python} has no {package}: set COMFYUI_PYTHON to the Python that runs ComfyUI."
            )


def run_demo(host: Host, options: argparse.Namespace) -> None:
    started = time.monotonic()
    workflow = _read_workflow(options.workflow)
    sets = reference_sets(options.references, options.styles)
    folder = next_free_folder(options.out)
    with tempfile.TemporaryDirectory(prefix="i2l-demo-") as base:
        server = ComfyServer(Path(base), host)
        try:
            server.start(lambda seconds: progress(f"Starting ComfyUI ... {seconds:.0f} s"))
            say(f"ComfyUI is running after {time.monotonic() - started:.0f} s.")
            sections = _draw(server.client(), workflow, sets, options.prompts, folder)
            styled = (
                _draw_infinity(server.client(), sets, options.prompts, folder)
                if options.workflow == WORKFLOW
                else []
            )
        except ComfyError:
            print(f"\nThe end of ComfyUI's log:\n{server.log_tail()}\n", file=sys.stderr)
            raise
        finally:
            server.stop()
    title = "A style from a few reference pictures, predicted in one forward"
    _save_sheet(title, sections, [folder / "contact_sheet.png", *([options.sheet] if options.sheet else [])])
    if styled:
        title = "Infinity: colours and tone of one picture, without training"
        _save_sheet(title, styled, [folder / "infinity_sheet.png"])
    say(f"Done in {time.monotonic() - started:.0f} s.")


def _read_workflow(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphError(f"No workflow file {path}.") from None
    except json.JSONDecodeError as error:
        raise GraphError(f"{path} is not a workflow file: {error}.") from None


def reference_sets(folder: Path, styles: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Style -> its pictures: NAME_1.png, NAME_2.png, ... are one style. GraphError when there is none.

    A picture without a number is a style for itself where none has one, and no style beside some that have.
    """
    paths = sorted(folder.glob("*.png"))
    sets: dict[str, list[Path]] = {}
    for path in [path for path in paths if path.stem[-1].isdigit()] or paths:
        sets.setdefault(re.sub(r"[-_ ]*\d+$", "", path.stem) or path.stem, []).append(path)
    for style in styles or ():
        if style not in sets:
            raise GraphError(f"No style {style!r} in {folder}: there are {', '.join(sets) or 'none'}.")
    if not sets:
        raise GraphError(f"No reference pictures (*.png) in {folder}.")
    return {style: paths for style, paths in sets.items() if not styles or style in styles}


def next_free_folder(parent: Path) -> Path:
    """Make parent/001, or 002, ...: the first that is not there."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def _draw(
    client: ComfyClient,
    workflow: dict[str, Any],
    sets: dict[str, list[Path]],
    prompts: Sequence[str],
    folder: Path,
) -> list[Any]:
    """Draw and save every prompt without LoRA and with that of every style. Returns the sheet's sections."""
    from PIL import Image

    from .contact_sheet import Row, Section

    names = {path: client.upload(path.name, path.read_bytes()) for paths in sets.values() for path in paths}
    prompt, _ = api_graph.only_pictures(graph_to_api(workflow, client.object_info()))
    total = len(prompts) * (1 + len(sets))
    done = 0

    def picture(graph: api_graph.Prompt, what: str, file: str) -> Image.Image:
        nonlocal done
        done += 1
        data = _run(client, graph, f"[{done}/{total}] {what}")
        (folder / file).write_bytes(data)
        say(f"{folder / file}")
        return Image.open(io.BytesIO(data))

    bare = api_graph.without_lora(prompt)
    without = [
        picture(api_graph.with_text(bare, text), f"{text}, without LoRA", f"{number + 1}_without_lora.png")
        for number, text in enumerate(prompts)
    ]
    sections: list[Section] = []
    for style, paths in sets.items():
        styled, _ = api_graph.only_pictures(api_graph.with_pictures(prompt, [names[path] for path in paths]))
        rows = [
            Row(text, without[number], picture(api_graph.with_text(styled, text), f"{text}, {style}", file))
            for number, text in enumerate(prompts)
            for file in [f"{number + 1}_{style}.png"]
        ]
        sections.append(
            Section(style.replace("_", " "), tuple(Image.open(path) for path in paths), tuple(rows))
        )
    return sections


def _draw_infinity(
    client: ComfyClient, sets: dict[str, list[Path]], prompts: Sequence[str], folder: Path
) -> list[Any]:
    """Every prompt with the demo's Infinity in the style of the first picture of every style, and without it."""
    from PIL import Image

    from .contact_sheet import Row, Section

    workflow = _read_workflow(INFINITY_WORKFLOW)
    prompt = graph_to_api(workflow, client.object_info())
    shown = {node["_meta"]["title"]: key for key, node in prompt.items() if node["class_type"] == "SaveImage"}
    (loader,) = (key for key, node in prompt.items() if node["class_type"] == "LoadImage")
    sections = []
    for style, paths in sets.items():
        prompt[loader]["inputs"]["image"] = client.upload(paths[0].name, paths[0].read_bytes())
        rows = []
        for number, text in enumerate(prompts, 1):
            what = f"Infinity: {text}, {style}"
            result = _queued(client, api_graph.with_text(prompt, text), what)
            with_style, without = (
                Image.open(io.BytesIO(client.image(result.images(shown[title])[0])))
                for title in ("In the style", "Without the style")
            )
            file = folder / f"infinity_{number}_{style}.png"
            with_style.save(file)
            say(f"{file}")
            rows.append(Row(text, without, with_style))
        columns = ("reference", "without", "in its style")
        sections.append(Section(style.replace("_", " "), (Image.open(paths[0]),), tuple(rows), columns))
    return sections


def _run(client: ComfyClient, graph: api_graph.Prompt, what: str) -> bytes:
    pictures = _queued(client, graph, what).images()
    if not pictures:
        raise ComfyError(f"{what}: the workflow gave no picture.")
    return client.image(pictures[0])


def _queued(client: ComfyClient, graph: api_graph.Prompt, what: str) -> Result:
    def show(event: Event) -> None:
        if event.type == "progress":
            progress(f"{what}: {event.data['value']}/{event.data['max']}")

    progress(f"{what} ...")
    result = client.queue(graph, on_event=show)
    if not result.ok:
        raise ComfyError(f"{what}: {result.error_message}")
    return result


def _save_sheet(title: str, sections: Sequence[Any], paths: Sequence[Path]) -> None:
    from .contact_sheet import contact_sheet

    sheet = contact_sheet(title, sections)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, optimize=True)
        say(f"{path}  (contact sheet)")


def progress(line: str) -> None:
    """A line that the next one replaces; nothing where there is no terminal to show it on."""
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)


def say(line: str) -> None:
    print(f"\r\033[K{line}" if sys.stdout.isatty() else line, flush=True)


if __name__ == "__main__":
    main()
