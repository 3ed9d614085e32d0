"""Hostile files for every reader of edgeface; `python -m benchmarks.fuzz`."""
