"""`bestiary train`, `resume` and `doctor`."""
