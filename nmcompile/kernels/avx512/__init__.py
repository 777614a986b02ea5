"""AVX-512 kernels, written in TIR and compiled by LLVM."""
