"""Prompt spectra: one embedding per denoising stage, mixed and scheduled by attribute."""
