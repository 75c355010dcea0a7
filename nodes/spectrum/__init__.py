"""Prompt spectra and staged prompts in a graph."""
