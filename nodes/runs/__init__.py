"""Run folders of trainings in the graph, and what a browser sees of them."""
