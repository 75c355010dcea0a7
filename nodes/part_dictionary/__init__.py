"""Part dictionaries in a graph: loaded, merged, listed, reported, saved."""
