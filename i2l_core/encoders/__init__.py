"""Frozen vision encoders: patch tokens for predictors that bring their own (tokens), one vector per picture for
those of i2L version 1 (pooled)."""

from .pooled import DINOV3 as DINOV3
from .pooled import KINDS as KINDS
from .pooled import MODEL_ID as MODEL_ID
from .pooled import SIGLIP2 as SIGLIP2
from .pooled import PooledConfig as PooledConfig
from .pooled import PooledEncoder as PooledEncoder
from .pooled import load_pooled as load_pooled
from .pooled import peek_pooled as peek_pooled
from .pooled import recognise as recognise
from .tokens import NAFLEX as NAFLEX
from .tokens import SQUARE as SQUARE
from .tokens import EncoderConfig as EncoderConfig
from .tokens import VisionEncoder as VisionEncoder
from .tokens import naflex_size as naflex_size
