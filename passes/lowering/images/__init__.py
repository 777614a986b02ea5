"""Whether the images of a batch are computed by themselves, and a batch may be run in parts."""
