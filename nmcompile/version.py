"""The version of this package: here alone, so that whatever needs it imports nothing else."""

VERSION = "0.1.0"
