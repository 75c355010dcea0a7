"""Words that stand for something else in the texts of nodes, as a person types them."""

PARTS_PLACE = "{parts}"
"""Where a prompt wants its parts."""
WORD_PLACE = "{word}"
"""Where the text of a sweep wants the word."""
ALL_PARTS = "all"
"""Every part of a dictionary but the background."""
