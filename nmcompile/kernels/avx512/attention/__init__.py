"""Attention: both products and the softmax between them, block by block."""
