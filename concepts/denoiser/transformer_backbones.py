"""The records of diffusion transformers by name, for code that is about one of these families."""

from .backbone import BACKBONES

SD3 = BACKBONES["sd3"]
"""Stable Diffusion 3 and 3.5: CLIP-L and CLIP-G side by side, padded to T5's width; T5 behind them."""
FLUX = BACKBONES["flux"]
"""Flux.1: T5 alone is attended to, CLIP-L gives its pooled vector."""
DEMO_DIT = BACKBONES["bestiary-demo-dit"]
"""The embedded miniature of SD3's class: the demo's CLIP-L alone, which also gives its pooled vector."""
