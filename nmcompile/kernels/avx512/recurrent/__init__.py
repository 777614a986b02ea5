"""LSTM and GRU: all steps in one call, each a product with few rows and the gates behind it."""
