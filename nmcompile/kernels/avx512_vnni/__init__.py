"""Kernels for AVX-512 CPUs with VNNI: u8 activations in NHWC, s8 weights, exact int32 sums."""
