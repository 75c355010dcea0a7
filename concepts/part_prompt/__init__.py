"""Part prompts: the grammar read and written, and training captions."""
