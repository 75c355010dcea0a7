"""One training run: loop, folder, recipe, state, progress and stop."""
