"""Nodes of the embedded miniature model and its drawn pictures."""
