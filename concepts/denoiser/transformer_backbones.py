"""Diffusion transformers as data: text encoders, widths and grids of Stable Diffusion 3, Flux.1 and the miniature of the first.

Text lengths are ComfyUI's, which are part of what a model is used with: T5 is padded to 77 in SD3 and to 256 in Flux, and not masked
(diffusers pads to 256 and 512 where it is not asked otherwise). One token of an attention grid is a patch of 2 x 2 latent places.
"""

from .backbone import Backbone, TextEncoderSpec

T5_WIDTH = 4096
LONGEST_T5 = 512
"""Positions after which a prompt is cut."""

SD3 = Backbone(
    "sd3",
    (
        TextEncoderSpec("clip_l", 768, "penultimate", pooled=True),
        TextEncoderSpec("clip_g", 1280, "penultimate", pooled=True),
        TextEncoderSpec("t5xxl", T5_WIDTH, "final", LONGEST_T5, place="behind", runs="single", min_tokens=77),
    ),
    image_size=1024,
    latent_channels=16,
    attention_divisor=16,
)
"""Stable Diffusion 3 and 3.5: CLIP-L and CLIP-G side by side, padded to T5's width; T5 behind them."""

FLUX = Backbone(
    "flux",
    (
        TextEncoderSpec("clip_l", 768, "final", pooled=True, role="pooled_only"),
        TextEncoderSpec("t5xxl", T5_WIDTH, "final", LONGEST_T5, runs="single", min_tokens=256),
    ),
    image_size=1024,
    latent_channels=16,
    attention_divisor=16,
)
"""Flux.1: T5 alone is attended to, CLIP-L gives its pooled vector."""

DEMO_DIT = Backbone(
    "bestiary-demo-dit",
    (TextEncoderSpec("clip_l", 128, "final", pooled=True),),
    image_size=128,
    latent_channels=8,
    attention_divisor=16,
)
"""The miniature of Stable Diffusion 3 for the drawn world: one CLIP of its own, no T5."""
