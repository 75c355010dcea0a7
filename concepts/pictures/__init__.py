"""Square crops of pictures, and drawings on them."""
