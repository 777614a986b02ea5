"""Matrix products with outputs in lanes: nothing is transposed, weights stream past few rows."""
