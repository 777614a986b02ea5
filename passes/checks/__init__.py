"""What a model must not have, whatever is to be done with it."""
