"""The adapter for Torch FX graphs."""
