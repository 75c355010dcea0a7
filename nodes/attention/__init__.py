"""Part attention during sampling: recording, display, and confinement to regions."""
