"""The embedded miniature model and drawn pictures."""
