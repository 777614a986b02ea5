"""From a Relax module to calls of our kernels, and what TVM computes itself."""
