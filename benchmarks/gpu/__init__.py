"""What `bench_gpu.py` runs on a machine with a GPU; travels in the kit and imports no TVM."""
