"""`bestiary discover` and `bestiary parts`: parts found in folders of pictures."""
