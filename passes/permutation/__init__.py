"""Which channels share an order, and the search for better ones."""
