"""The method: what a learned concept is. Plain tensors in, plain tensors out."""
