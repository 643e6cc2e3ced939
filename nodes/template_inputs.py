"""What templates take: a value, a colour, a picture with a prompt, a picture with a mask, or settings by name."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..i2l_core.errors import I2LError
from ..i2l_core.host.templates.base import Template as LoadedTemplate
from ..i2l_core.host.templates.base import inputs_for
from ..i2l_core.predictors.template.inputs import (
    ColourInput,
    InpaintInput,
    PictureInput,
    SettingsInput,
    ValueInput,
    check_picture,
    mask_of,
    picture_of,
)
from .report import NodeReport
from .sockets import TEMPLATES, TemplateInputs, check_keys, template_input

PART, YEARS, OTHER = "0 to 1", "years", "other"
LARGEST = 10000.0

_VAE = "The VAE of FLUX.2, from Load VAE."
_CLIP = "The text encoder of FLUX.2 klein, from Load CLIP with the type flux2."
_FOR_PROGRAMS = "Only for templates whose program needs it."
_OUTPUT = "For Apply Template."


def _value(
    default: float,
    lowest: float,
    highest: float,
    step: float,
    display: io.NumberDisplay | None,
    name: str = "value",
    tooltip: str = "Brightness: 0.3 dark, 0.5 neutral, 0.7 bright. Sharpness: 0.1 soft, 0.5 neutral, 0.8 sharp. Age: "
    "years, 45 neutral.",
) -> io.Input:
    return io.Float.Input(
        name,
        default=default,
        min=lowest,
        max=highest,
        step=step,
        display_mode=display,  # type: ignore[arg-type]
        tooltip=tooltip,
    )


def _output() -> io.Output:
    return TemplateInputs.Output("inputs", tooltip=_OUTPUT)


class TemplateValue(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        option = io.DynamicCombo.Option
        other = [
            _value(0.7, -LARGEST, LARGEST, 0.01, None),
            _value(
                0.5, -LARGEST, LARGEST, 0.01, None, "neutral", "The neutral value, for the negative side."
            ),
            _value(
                1000.0,
                0.001,
                100 * LARGEST,
                0.001,
                None,
                "factor",
                "What the template multiplies the value with. Its model.py or its author says so; 1000 for the "
                "published ones, 10 for Age.",
            ),
        ]
        return io.Schema(
            node_id="TemplateValue",
            display_name="Template Value",
            category=TEMPLATES,
            description="The value for a template such as Brightness, Sharpness or Age. The negative side gets the "
            "neutral value by itself.",
            search_aliases=["brightness", "sharpness", "age", "template slider", "attribute control", "i2l"],
            has_intermediate_output=True,
            inputs=[
                template_input(),
                io.DynamicCombo.Input(
                    "scale",
                    options=[
                        option(PART, [_value(0.7, 0.0, 1.0, 0.01, io.NumberDisplay.slider)]),
                        option(YEARS, [_value(20.0, 1.0, 100.0, 1.0, io.NumberDisplay.slider)]),
                        option(OTHER, other),
                    ],
                    tooltip="0 to 1: Brightness, Sharpness. years: Age. other: a template that is not published by "
                    "DiffSynth-Studio.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls, template: LoadedTemplate, scale: dict[str, Any] | None = None, **unknown: Any
    ) -> io.NodeOutput:
        if not isinstance(scale, dict) or not isinstance(scale.get("scale"), str):
            raise I2LError(
                f'scale takes no cable; in an API prompt it must be "{PART}", "{YEARS}" or "{OTHER}", and its inputs '
                "have their own keys: scale.value, scale.neutral, scale.factor"
            )
        check_keys(unknown, "scale.value, scale.neutral, scale.factor")
        return _given(template, ValueInput(scale["value"], scale.get("neutral"), scale.get("factor")))


class TemplateColour(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemplateColour",
            display_name="Template Colour",
            category=TEMPLATES,
            description="The colour for the template SoftRGB: the picture takes its tint. The negative side gets none.",
            search_aliases=["soft rgb", "tint", "colour grading", "color", "i2l"],
            has_intermediate_output=True,
            inputs=[
                template_input(),
                *(
                    io.Int.Input(
                        name,
                        default=default,
                        min=0,
                        max=255,
                        display_mode=io.NumberDisplay.slider,
                        tooltip=f"How much {name} there is. 128 in all three is gray.",
                    )
                    for name, default in (("red", 208), ("green", 185), ("blue", 138))
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, template: LoadedTemplate, red: int, green: int, blue: int) -> io.NodeOutput:
        return _given(template, ColourInput(red / 255, green / 255, blue / 255))


class TemplatePicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemplatePicture",
            display_name="Template Picture",
            category=TEMPLATES,
            description="The picture and the prompt for a template such as ControlNet, Edit or Upscaler. The negative "
            "side gets the same picture with an empty prompt by itself.",
            search_aliases=["control picture", "structure", "depth", "canny", "edit", "upscale", "i2l"],
            has_intermediate_output=True,
            inputs=[
                template_input(),
                io.Image.Input(
                    "image",
                    tooltip="ControlNet: a depth map, edges or the like. Edit: the picture to change. Upscaler: the "
                    "small picture. Sides must be multiples of 16 pixels. Best of the size that is drawn.",
                ),
                io.Vae.Input("vae", tooltip=_VAE),
                io.Clip.Input("clip", tooltip=_CLIP),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shall show; for Edit, what to change. Usually the same words as in the "
                    "positive prompt.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls, template: LoadedTemplate, image: Tensor, vae: Any, clip: Any, prompt: str
    ) -> io.NodeOutput:
        return _given(template, PictureInput(image, prompt, vae, clip))


class TemplateInpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemplateInpaint",
            display_name="Template Inpaint",
            category=TEMPLATES,
            description="The picture and the mask for the template Inpaint, which draws what is inside the mask anew, "
            "in keeping with the rest.",
            search_aliases=["inpaint", "mask", "fill", "klein inpaint", "i2l"],
            has_intermediate_output=True,
            inputs=[
                template_input(),
                io.Image.Input(
                    "image", tooltip="The picture to change. Sides must be multiples of 16 pixels."
                ),
                io.Mask.Input("mask", tooltip="White: drawn anew. Of the size of the picture."),
                io.Vae.Input("vae", tooltip=_VAE),
                io.Clip.Input("clip", optional=True, tooltip=f"{_CLIP} {_FOR_PROGRAMS}"),
                io.Boolean.Input(
                    "keep_outside",
                    default=True,
                    optional=True,
                    tooltip="On: nothing changes outside of the mask. Off: the rest may adapt.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls,
        template: LoadedTemplate,
        image: Tensor,
        mask: Tensor,
        vae: Any,
        clip: Any = None,
        keep_outside: bool = True,
    ) -> io.NodeOutput:
        return _given(template, InpaintInput(image, mask, keep_outside, vae, clip))


class TemplateSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemplateSettings",
            display_name="Template Settings",
            category=TEMPLATES,
            description="Inputs of a template's program by its own names, for a template that no other input node "
            "suits, such as Aesthetic.",
            search_aliases=["template inputs", "aesthetic", "json", "i2l"],
            has_intermediate_output=True,
            inputs=[
                template_input(),
                io.String.Input(
                    "positive",
                    default='{"lora_ids": [1, 3, 5], "lora_scales": 1.0, "merge_type": "mean"}',
                    multiline=True,
                    tooltip="The inputs for the positive side, as JSON. Load Template shows which names the program "
                    "takes.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    tooltip="The inputs for the negative side, as JSON. Empty: the same as for the positive side.",
                ),
                io.Image.Input("image", optional=True, tooltip='A picture, given as "image" on both sides.'),
                io.Mask.Input("mask", optional=True, tooltip='A mask, given as "mask" on both sides.'),
                io.Vae.Input("vae", optional=True, tooltip=_FOR_PROGRAMS),
                io.Clip.Input("clip", optional=True, tooltip=_FOR_PROGRAMS),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls,
        template: LoadedTemplate,
        positive: str,
        negative: str,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        vae: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        pictures: dict[str, Any] = {}
        if image is not None:
            check_picture(image)
            pictures["image"] = picture_of(image)
        if mask is not None:
            pictures["mask"] = mask_of(mask)
        plus = {**pictures, **_object("positive", positive)}
        minus = {**pictures, **_object("negative", negative)} if negative.strip() else None
        return _given(template, SettingsInput(plus, minus, vae, clip))


def _given(template: LoadedTemplate, given: Any) -> io.NodeOutput:
    inputs = inputs_for(template, given)
    return io.NodeOutput(inputs, ui=NodeReport(str(inputs)))


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise I2LError(
            f'{name}: expected JSON such as {{"scale": 0.7}}, {error.msg} at character {error.pos}'
        ) from error
    if not isinstance(found, dict):
        raise I2LError(
            f'{name}: expected names and values such as {{"scale": 0.7}}, got {type(found).__name__}'
        )
    return found
