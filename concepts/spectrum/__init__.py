"""Prompt spectra: one embedding per denoising stage, with mixing and scheduling by attribute."""
