"""The nodes: thin V3 classes that unpack sockets, call the core once, and pack the result."""

from __future__ import annotations

from ..i2l_core.host.folders import register_predictors
from .apply import ApplyPredictedLoRA
from .blocks import LoRABlocks
from .demo import LoadI2LDemo
from .folder import ImagesFromFolder
from .fuse import FuseLoRAs
from .guide import AsymmetricCFG, AsymmetricGuider
from .infinity_demo import LoadInfinityDemo
from .infinity_load import LoadInfinity, LoadInfinityTextEncoder, LoadInfinityVAE
from .infinity_sample import InfinitySampler
from .infinity_start import InfinityStartFromPicture
from .infinity_style import InfinityStyleFromPictures, InfinityStyleFromWords
from .load import LoadI2LPredictor
from .load_file import LoadLoRAFile
from .predict import ImagesToLoRA
from .preview import LoRAPreview
from .reference import StyleReference
from .region import StyleRegion
from .replaced import register_replaced
from .save import SavePredictedLoRA
from .template_apply import ApplyTemplate, TemplateToLoRA
from .template_demo import LoadI2LTemplateDemo
from .template_inputs import (
    TemplateColour,
    TemplateInpaint,
    TemplatePicture,
    TemplateSettings,
    TemplateValue,
)
from .template_load import LoadTemplate
from .template_save import SaveTemplateCache
from .tone import StyleToneBlend

__all__ = ["NODES", "on_load"]

NODES = (
    LoadI2LPredictor,
    StyleReference,
    ImagesFromFolder,
    ImagesToLoRA,
    ApplyPredictedLoRA,
    AsymmetricCFG,
    AsymmetricGuider,
    StyleRegion,
    StyleToneBlend,
    FuseLoRAs,
    LoRAPreview,
    SavePredictedLoRA,
    LoadLoRAFile,
    LoRABlocks,
    LoadI2LDemo,
    LoadTemplate,
    TemplateValue,
    TemplateColour,
    TemplatePicture,
    TemplateInpaint,
    TemplateSettings,
    ApplyTemplate,
    TemplateToLoRA,
    SaveTemplateCache,
    LoadI2LTemplateDemo,
    LoadInfinity,
    LoadInfinityTextEncoder,
    LoadInfinityVAE,
    InfinityStyleFromPictures,
    InfinityStyleFromWords,
    InfinityStartFromPicture,
    InfinitySampler,
    LoadInfinityDemo,
)


async def on_load() -> None:
    """Once, when ComfyUI starts: it learns where predictors are, and what replaces nodes of earlier versions."""
    register_predictors()
    await register_replaced()
