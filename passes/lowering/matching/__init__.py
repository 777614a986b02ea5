"""Which operators become one kernel: layers with what is fused, attention, norms, GELU."""
