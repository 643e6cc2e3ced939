"""Change a prompt in API form: its text, its references, the LoRA left out. All return new prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

Prompt = dict[str, dict[str, Any]]

PREDICT = "ImagesToLoRA"
APPLY = ("ApplyPredictedLoRA", "LoraModelLoader")
TEXT = "CLIPTextEncode"
PICTURE_OUTPUTS = ("SaveImage", "PreviewImage")


class PromptError(ValueError):
    """The prompt lacks what a change needs; the message says what."""


def nodes_of(prompt: Mapping[str, Mapping[str, Any]], *classes: str) -> list[str]:
    """Ids of the nodes of some classes, in the order of the prompt."""
    return [key for key, node in prompt.items() if node["class_type"] in classes]


def links_of(node: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Input name -> (node, output) for the inputs that are links."""
    return {
        name: (value[0], value[1])
        for name, value in node["inputs"].items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    }


def upstream(prompt: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """The node and all that it depends on, nearest first."""
    found: dict[str, None] = {}
    waiting = [key]
    while waiting:
        current = waiting.pop(0)
        if current not in found:
            found[current] = None
            waiting.extend(source for source, _ in links_of(prompt[current]).values())
    return list(found)


def only_pictures(prompt: Prompt) -> tuple[Prompt, str]:
    """The part of the prompt that makes the first saved picture, and the id of the node that saves it."""
    outputs = [key for kind in PICTURE_OUTPUTS for key in nodes_of(prompt, kind)]
    if not outputs:
        raise PromptError(
            f"The workflow saves no picture: expected a node of {' or '.join(PICTURE_OUTPUTS)}."
        )
    kept = set(upstream(prompt, outputs[0]))
    return {key: copy.deepcopy(node) for key, node in prompt.items() if key in kept}, outputs[0]


def text_node(prompt: Prompt) -> str:
    """The node whose text is the positive prompt: the nearest text node above an input `positive`."""
    for node in prompt.values():
        start = links_of(node).get("positive")
        if start is not None:
            for key in upstream(prompt, start[0]):
                if prompt[key]["class_type"] == TEXT and isinstance(prompt[key]["inputs"].get("text"), str):
                    return key
    raise PromptError(f"The workflow has no {TEXT} node that leads to an input `positive`.")


def text_of(prompt: Prompt) -> str:
    return prompt[text_node(prompt)]["inputs"]["text"]


def with_text(prompt: Prompt, text: str) -> Prompt:
    changed = copy.deepcopy(prompt)
    changed[text_node(prompt)]["inputs"]["text"] = text
    return changed


def pictures_of(prompt: Prompt) -> list[str]:
    """File names of the pictures that the prediction is made from."""
    names: list[str] = []
    for key in nodes_of(prompt, PREDICT):
        for source, _ in links_of(prompt[key]).values():
            names += [
                prompt[above]["inputs"]["image"]
                for above in upstream(prompt, source)
                if prompt[above]["class_type"] == "LoadImage"
            ]
    return list(dict.fromkeys(names))


def with_pictures(prompt: Prompt, names: Sequence[str]) -> Prompt:
    """Let every prediction be made from these pictures of the server's input folder."""
    changed = copy.deepcopy(prompt)
    predictions = nodes_of(changed, PREDICT)
    if not predictions:
        raise PromptError(f"The workflow has no {PREDICT} node.")
    for number, name in enumerate(names):
        title = {"title": f"Reference {number + 1}"}
        changed[f"reference{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}, "_meta": title}
    for key in predictions:
        inputs = changed[key]["inputs"]
        for old in [name for name in inputs if name.startswith("images.")]:
            del inputs[old]
        for number in range(len(names)):
            inputs[f"images.image{number}"] = [f"reference{number}", 0]
    return changed


def without_lora(prompt: Prompt) -> Prompt:
    """The same graph without the nodes that apply a predicted LoRA: their model goes straight through."""
    changed = copy.deepcopy(prompt)
    applied = nodes_of(changed, *APPLY)
    if not applied:
        raise PromptError(f"The workflow applies no LoRA: expected a node of {' or '.join(APPLY)}.")
    for key in applied:
        model = changed.pop(key)["inputs"]["model"]
        for node in changed.values():
            for name, (source, slot) in links_of(node).items():
                if (source, slot) == (key, 0):
                    node["inputs"][name] = model
    return only_pictures(changed)[0]
