"""The embedded default: drawn creatures and a miniature latent diffusion model trained on them."""
