"""Which channels can be taken out of a model: used by `nmcompile.passes.remove_zero_channels`."""
