"""DeepFloyd IF as an ordinary MODEL, CLIP and VAE."""
