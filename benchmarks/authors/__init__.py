"""Our training methods beside the public code of their authors; see docs/methods.md."""
