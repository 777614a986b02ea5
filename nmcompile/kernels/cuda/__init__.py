"""From the CUDA that TVM writes to cubins, into the library, and onto the GPU at hand."""
