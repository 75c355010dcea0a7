"""The commands of `bestiary`, one file a family."""
