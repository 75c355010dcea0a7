"""Parts: found in pictures, named, learned, written in prompts, measured."""
