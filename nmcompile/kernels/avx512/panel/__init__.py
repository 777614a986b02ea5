"""Convolutions by panels: rows of input under runs of output pixels, multiplied list by list."""
