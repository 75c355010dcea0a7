"""Files of other programs in, ours out, and what a file holds."""
