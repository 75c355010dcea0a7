"""`bestiary demo`: the complete workflow on drawn creatures."""
