"""What our files say they are and how they end, for whoever lists files without reading what is in them."""

DICTIONARY_KIND, CODEBOOK_KIND, SPECTRUM_KIND = "part-dictionary", "parts", "prompt-spectrum"
"""As the metadata of a file says it."""
CODEBOOK_SUFFIX = ".parts.safetensors"
