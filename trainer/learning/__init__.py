"""What the command line and the graph share to learn: the only room of the trainer that nodes/ may import."""
