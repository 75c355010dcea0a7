"""Parts in the prompts of a graph: selection, prompt syntax, encoding."""
