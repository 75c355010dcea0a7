"""The miniature base model and its judge, trained from nothing."""
