"""Integer kernels whose vectors run over channels: windows, means, conversions, tables, sums."""
