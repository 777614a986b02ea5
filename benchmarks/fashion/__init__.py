"""Accuracy of the training methods on Fashion-MNIST: `python -m benchmarks.fashion`."""
