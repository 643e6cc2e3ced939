"""A folder of styles as a list: the nodes after this one run once per style."""

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
            description="Reads a style library: each sub-folder of pictures is one style. Images to LoRA "
            "and Save Predicted LoRA then run once per style. Pictures that cannot be read are "
            "skipped and listed in the report.",
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
                    tooltip="A folder inside ComfyUI's input folder; each of its sub-folders holds the "
                    "pictures of one style. Press R to refresh the list. The examples come with "
                    "the pack.",
                ),
                io.Int.Input(
                    "most_pictures",
                    default=8,
                    min=1,
                    max=MOST_PICTURES,
                    tooltip="How many pictures of each style to use at most, in the order of their names.",
                ),
            ],
            outputs=[
                Reference.Output(
                    "references",
                    is_output_list=True,
                    tooltip="A list with the pictures of each style, for an image socket of Images to LoRA.",
                ),
                io.String.Output(
                    "names",
                    is_output_list=True,
                    tooltip="A list with the names of the folders, for the filename of Save Predicted LoRA.",
                ),
                io.String.Output(
                    "report", tooltip="The number of styles, and which pictures were skipped and why."
                ),
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
