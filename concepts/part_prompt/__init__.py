"""Part prompts: parser and writer of the grammar, and training captions."""
