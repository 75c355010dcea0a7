"""`bestiary discover` and `bestiary parts`: discovery of parts in folders of pictures."""
