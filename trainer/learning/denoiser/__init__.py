"""What learning asks of a denoiser, whatever library holds it."""
