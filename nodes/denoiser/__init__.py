"""The denoiser over ComfyUI's MODEL, CLIP and VAE."""
