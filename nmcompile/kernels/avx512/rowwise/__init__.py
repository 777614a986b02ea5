"""Rows that are read, reduced, and read again: norms and softmax; positions of maxima."""
