"""A folder of styles as a list: what follows runs once for each."""

from __future__ import annotations

from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..i2l_core.errors import I2LError
from ..i2l_core.host.library import EXAMPLES, fingerprint_library, library_folders, library_path, read_library
from .report import NodeReport
from .sockets import CATEGORY, Reference

MOST_PICTURES = 64


class ImagesFromFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImagesFromFolder",
            display_name="Images from Folder (i2L)",
            category=CATEGORY,
            description="A library of styles: each sub-folder of pictures is one style. Images to LoRA and Save "
            "Predicted LoRA then run once for each style, unattended. Broken pictures are named and left out.",
            search_aliases=[
                "style library",
                "batch styles",
                "load images from folder",
                "style folder",
                "i2l",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[*library_folders(), EXAMPLES],
                    tooltip="A folder in ComfyUI's input folder whose sub-folders hold pictures, one style each. "
                    "Press R to list a folder just made. The examples come with the pack.",
                ),
                io.Int.Input(
                    "most_pictures",
                    default=8,
                    min=1,
                    max=MOST_PICTURES,
                    tooltip="How many pictures of each style are used, the first ones by name.",
                ),
            ],
            outputs=[
                Reference.Output(
                    "references",
                    is_output_list=True,
                    tooltip="For an image socket of Images to LoRA: the pictures of one style after the other.",
                ),
                io.String.Output(
                    "names",
                    is_output_list=True,
                    tooltip="The names of the folders, for the filename of Save Predicted LoRA.",
                ),
                io.String.Output("report", tooltip="How many styles there are, and what was left out."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        try:
            library_path(folder)
        except I2LError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, most_pictures: int) -> str:
        return f"{fingerprint_library(folder)}-{most_pictures}"

    @classmethod
    def execute(cls, folder: str, most_pictures: int) -> io.NodeOutput:
        bar = ProgressBar(1)
        library = read_library(folder, most_pictures, lambda done, of: bar.update_absolute(done, of))
        report = str(library)
        return io.NodeOutput(
            list(library.styles.values()), list(library.styles), report, ui=NodeReport(report)
        )
