"""`bestiary demo`: the whole job on drawn creatures."""
