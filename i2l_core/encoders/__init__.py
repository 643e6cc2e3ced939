"""Frozen vision encoders, one way to look at a picture per file."""

from .tokens import NAFLEX as NAFLEX
from .tokens import SQUARE as SQUARE
from .tokens import EncoderConfig as EncoderConfig
from .tokens import VisionEncoder as VisionEncoder
from .tokens import naflex_size as naflex_size
