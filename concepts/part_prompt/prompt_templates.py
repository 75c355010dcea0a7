"""Sentences that training captions are set in: the 27 short ones customary since textual inversion (arXiv 2208.01618)."""

PHOTO_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a photo of my {}",
    "the photo of a {}",
    "a good photo of a {}",
    "a good photo of the {}",
    "a bright photo of the {}",
    "a dark photo of the {}",
    "a cropped photo of a {}",
    "a cropped photo of the {}",
    "a close-up photo of a {}",
    "a close-up photo of the {}",
    # pictures other than photographs
    "a rendering of a {}",
    "a rendition of a {}",
    "a rendition of the {}",
    # with an adjective
    "a photo of a clean {}",
    "a photo of the clean {}",
    "a photo of a dirty {}",
    "a photo of a cool {}",
    "a photo of the cool {}",
    "a photo of a nice {}",
    "a photo of the nice {}",
    "a photo of a small {}",
    "a photo of the small {}",
    "a photo of the large {}",
    "a photo of the weird {}",
)
"""`{}` is where the part tokens go."""
