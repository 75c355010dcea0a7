"""Pictures from part dictionaries, prompt spectra and prompts."""
