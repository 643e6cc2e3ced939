"""Frozen vision encoders: patch tokens for predictors of the query family (`siglip`), one vector per picture for
predictors of version 1 (`v1`)."""

from .siglip import NAFLEX as NAFLEX
from .siglip import SQUARE as SQUARE
from .siglip import EncoderConfig as EncoderConfig
from .siglip import VisionEncoder as VisionEncoder
from .siglip import naflex_size as naflex_size
from .v1 import DINOV3 as DINOV3
from .v1 import KINDS as KINDS
from .v1 import MODEL_ID as MODEL_ID
from .v1 import SIGLIP2 as SIGLIP2
from .v1 import PooledConfig as PooledConfig
from .v1 import PooledEncoder as PooledEncoder
from .v1 import load_pooled as load_pooled
from .v1 import peek_pooled as peek_pooled
from .v1 import recognise as recognise
