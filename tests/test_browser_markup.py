"""Files and workflows that bring markup: the front end shows it as text, and nothing in it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from front_end import Dropped, FrontEnd, both_renderers
from safetensors.torch import save_file

from i2l.tools.comfy_server import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.server]

IMG = "<img src=x onerror=window.hacked=1>"
SCRIPT = "<script>window.hacked=1</script>"

# Elements that came of the markup anywhere on the page, and whether it ran.
RAN = """() => [
    window.hacked ?? 0,
    document.querySelectorAll("img[src='x'], img[src^='javascript'], [onerror]").length,
    [...document.scripts].filter(({ textContent }) => textContent === "window.hacked=1").length,
]"""

CARD: dict[str, Any] = {
    "references": IMG,
    "id": SCRIPT,
    "thumbnails": [
        'x" onerror="window.hacked=1',
        "javascript:window.hacked=1",
        'data:image/png," onerror="window.hacked=1',
    ],
    "loras": [
        {"role": IMG, "rank": SCRIPT, "layers": IMG, "blocks": [[SCRIPT, IMG, 1.0]], "landed": SCRIPT, "mode": IMG,
         "side": IMG, "strength": 1.0},
        {"role": IMG, "rank": SCRIPT, "layers": IMG, "blocks": [[f'"{IMG}', 0, 1.0]]},
    ],
    "lines": [IMG, SCRIPT],
    "warnings": [{"id": IMG, "text": SCRIPT}, {"id": "left_out", "n": IMG}],
}  # fmt: skip


@both_renderers
def test_markup_is_shown_as_text(front_end: FrontEnd, comfy_server: ComfyServer):
    loras = comfy_server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    name = f"{IMG}.safetensors"
    weights = {
        f"diffusion_model.layers.0.attention.out.lora_{part}.weight": torch.rand(4, 4) for part in "AB"
    }
    layer = {f"{SCRIPT}{IMG}.lora_{part}.weight": torch.rand(4, 4) for part in "AB"}
    about = {
        key: f"{IMG}{SCRIPT}" for key in ("modelspec.title", "ss_sd_model_name", "ss_base_model_version")
    }
    about |= {"modelspec.architecture": SCRIPT, "i2l": IMG, IMG: SCRIPT}
    saved = loras / "markup.safetensors"
    try:
        for tensors in (weights, weights | layer):
            save_file(tensors, loras / name, about)
            prompt = {
                "1": {"class_type": "LoadLoRAFile", "inputs": {"lora_name": name, "base_model": "auto"}},
                "2": {"class_type": "SavePredictedLoRA", "inputs": {"lora": ["1", 0], "filename": "markup"}},
            }
            front_end.ask("(prompt) => app.loadApiJson(prompt, 'markup')", prompt)
            front_end.settle()
            front_end.run()
            front_end.show_all()
            front_end.page.wait_for_timeout(300)
            assert front_end.ask(RAN) == [0, 0, 0]
        front_end.start_over("ImagesToLoRA", "LoadLoRAFile")
        front_end.ask(
            "(card) => app.graph.nodes.forEach((node) => node.onExecuted({ i2l_card: [card] }))", CARD
        )
        front_end.settle()
        workflow = front_end.ask("() => app.graph.serialize()")
        assert any("i2l_card" in node["properties"] for node in workflow["nodes"])
        front_end.load(workflow)  # as a workflow of somebody else brings it
        front_end.drop([Dropped(f"{IMG}.txt", "text/plain", b"x")], "ImagesToLoRA")
        assert IMG in front_end.said(IMG)
        front_end.show_all()
        front_end.page.wait_for_timeout(300)
        assert IMG in front_end.card("LoadLoRAFile")
        assert SCRIPT in front_end.card("LoadLoRAFile")
        assert front_end.ask(RAN) == [0, 0, 0]
    finally:
        for path in (loras / name, saved):
            path.unlink(missing_ok=True)
