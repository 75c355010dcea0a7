"""Picture files and their companions, read, cached and laid out on sheets."""
