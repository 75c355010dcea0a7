"""Learning prompt spectra: settings, batches, objective, sheets."""
