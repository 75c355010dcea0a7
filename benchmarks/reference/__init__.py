"""Re-creations of other people's training steps, written from their description, for comparison only."""
