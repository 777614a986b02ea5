"""Convolutions and matrix products whose vectors run over output channels: sparse and dense."""
