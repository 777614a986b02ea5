"""What was computed before, on disk: a bounded store of files by what they were made of."""

from nmcompile.cache.sources import source_digest
from nmcompile.cache.store import LIMIT_BYTES, OFF, VARIABLE, Cache, find_folder

__all__ = ["LIMIT_BYTES", "OFF", "VARIABLE", "Cache", "find_folder", "source_digest"]
