"""Part dictionaries in a graph: loading, merging, listing, reports, saving."""
