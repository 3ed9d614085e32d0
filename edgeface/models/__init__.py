"""Backbones, layers, heads and the multi-task network."""
