"""Evaluation of pictures against the requested parts."""
