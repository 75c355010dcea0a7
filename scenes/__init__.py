"""Several concepts in one picture."""
