"""Layers of a batch, a few images at a time: what passes between them stays in cache."""
