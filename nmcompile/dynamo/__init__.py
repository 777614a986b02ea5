"""nmcompile as a backend of torch.compile, which finds it by its entry point."""
