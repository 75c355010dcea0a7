"""Pictures fitted to squares and drawn upon."""
