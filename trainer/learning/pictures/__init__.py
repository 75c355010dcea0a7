"""Picture files and their companions: reading, latent cache and contact sheets."""
