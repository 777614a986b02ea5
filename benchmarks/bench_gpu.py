"""Checks and times the GPU kernels and whole models of a kit; see `make gpu-kit`.

    python bench_gpu.py                 # in the kit, on a machine with a GPU: ten minutes at most
    python bench_gpu.py --parts layers  # some parts; those of an earlier run stay in the result

It needs Python, numpy and the NVIDIA driver; for the peers also torch with CUDA. It writes
results/<gpu>.json and .md after every job, so that a run that is killed keeps what it has measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark. Exit codes: 0 done, 1 with failures, 2 nothing can run."""
    parser = argparse.ArgumentParser(prog="bench_gpu.py", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--seconds", type=float, help="for all parts together; by default 570")
    parser.add_argument("--parts", default="", help="only these: layers-64,model,compiled,patterns")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(HERE))  # python -I leaves a script's folder out
    try:
        from benchmarks.gpu import run, worker
    except ImportError as error:
        way_out = (
            "pip install numpy" if error.name == "numpy" else "run bench_gpu.py of a whole kit"
        )
        print(f"error: {error}: {way_out} (`make gpu-kit` writes one)", file=sys.stderr)
        return 2
    if options.worker:
        return worker.main(HERE)
    # What torch compiles stays in the kit: a second run begins where the first one ended.
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ.setdefault(name, str(HERE / "cache" / name.split("_")[0].lower()))
    return run.main(
        HERE,
        [sys.executable, str(Path(__file__).resolve()), "--worker"],
        options.output,
        options.seconds,
        tuple(filter(None, options.parts.split(","))),
    )


if __name__ == "__main__":
    sys.exit(main())
