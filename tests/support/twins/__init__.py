"""Runs kernels for AVX-512 on CPUs without it, so that tests are not skipped there.

LLVM makes two vectors of 256 bits of each of 512 where it generates code for such a CPU; what
kernels call by an instruction's name has a twin in `instructions`. Artifacts of this process then
say truly what they need. Those that another process compiles, which has no twins, are refused as
they should be.
"""

from tests.support.twins.use import here, use

__all__ = ["here", "use"]
