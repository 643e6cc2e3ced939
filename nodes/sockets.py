"""Socket types and inputs that several nodes share."""

from __future__ import annotations

from collections.abc import Collection

from comfy_api.latest import io

from ..i2l_core.checks import listed
from ..i2l_core.errors import I2LError
from ..i2l_core.schedule import NAMED

CATEGORY = "i2L"
TEMPLATES = "i2L/templates"
INFINITY = "i2L/Infinity"

Predictor = io.Custom("I2L_PREDICTOR")  # i2l_core.predictors.base.Predictor
Reference = io.Custom("I2L_REFERENCE")  # a list of i2l_core.references.Reference
Template = io.Custom("I2L_TEMPLATE")  # i2l_core.host.templates.base.Template
TemplateInputs = io.Custom("I2L_TEMPLATE_INPUTS")  # i2l_core.host.templates.base.TemplateInputs
InfinityModel = io.Custom("I2L_INFINITY")  # i2l_core.host.infinity.model.InfinityModel
InfinityStyle = io.Custom("I2L_SCALE_STYLE")  # i2l_core.host.infinity.style: PictureStyle or WordStyle
InfinityStart = io.Custom("I2L_INFINITY_START")  # i2l_core.host.infinity.sample.Start
LoraModel = io.Custom("LORA_MODEL")  # ComfyUI's own: tensors by name; ours is host.lora_model.PredictedLoRA


def strength_input(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=tooltip)


def start_percent_input(what: str = "LoRA") -> io.Float.Input:
    return _percent(
        "start_percent",
        0.0,
        f"When the {what} starts to act, as a fraction of the sampling. 0: from the first step.",
    )


def end_percent_input() -> io.Float.Input:
    return _percent(
        "end_percent",
        1.0,
        "When the LoRA stops acting, as a fraction of the sampling. 1: after the last step.",
    )


def curve_input() -> io.String.Input:
    return io.String.Input(
        "curve",
        default="",
        optional=True,
        advanced=True,
        placeholder="0: 1, 0.5: 0.3, 1: 0",
        tooltip="Strength over the sampling as keyframes position: factor, such as 0: 1, 0.5: 0.3, 1: 0 (0 = first "
        f"step, 1 = last), linear in between. Or a name: {', '.join(NAMED)}. Empty: constant.",
    )


def template_input() -> io.Input:
    return Template.Input("template", tooltip="The template, from Load Template.")


def template_inputs_input() -> io.MultiType.Input:
    return io.MultiType.Input(
        "inputs",
        types=[TemplateInputs, Template],
        tooltip="From Template Value, Template Picture or another input node; or straight from Load Template, for a "
        "template that takes nothing.",
    )


def check_keys(unknown: Collection[str], right: str) -> None:
    """Raise I2LError for keys of a prompt that a node with growing inputs lacks. `right`: its keys."""
    if unknown:
        raise I2LError(
            f"this node has no input {listed(unknown)}; in an API prompt each of its sockets has its own key: {right}"
        )


def _percent(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, optional=True, tooltip=tooltip)
