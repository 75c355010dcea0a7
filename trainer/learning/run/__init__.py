"""One run: the loop, its folder, recipe, state, progress and end."""
