"""Several things in one picture: subjects, layouts, scenes, prompts by region, sets."""
