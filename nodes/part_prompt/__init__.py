"""Parts in the prompts of a graph: picked, written, encoded."""
