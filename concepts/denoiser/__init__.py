"""The denoiser as every method sees it: the protocol, its data, adapters, attention."""
