"""Part maps in a graph: discovery, segmentation, edits and overlays."""
