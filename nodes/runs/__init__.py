"""Run folders of trainings in the graph, and their display in the browser."""
