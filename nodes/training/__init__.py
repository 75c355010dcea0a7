"""Training in the graph and in a child process."""
