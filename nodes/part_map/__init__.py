"""Parts found in the pictures of a graph, found again, edited and drawn."""
