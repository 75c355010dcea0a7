"""The denoiser over diffusers and transformers."""
