"""The command line `bestiary`: discovery, training, composing and judging over diffusers."""
