"""Training sets of scenes: recipe, subjects read from folders, the build and its page."""
