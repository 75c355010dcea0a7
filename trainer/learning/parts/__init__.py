"""Learning part tokens: settings, batches, objective, previews."""
