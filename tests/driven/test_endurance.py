"""What lasts minutes: nothing grows, and writers that are killed leave nothing."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nmcompile.runtime import load

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "amount"), [("runs", 120), ("threads", 10_000), ("loads", 20_000)]
)
def test_nothing_grows(kind: str, amount: int, sparse_artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.endurance", str(sparse_artifact), kind, str(amount)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_sixty_killed_compilations_leave_nothing(sparse_onnx: Path, tmp_path: Path) -> None:
    """After the next one; and what was written before is whole all the time."""
    temporary, output = tmp_path / "temporary", tmp_path / "out" / "m.nmc"
    temporary.mkdir()
    output.parent.mkdir()
    command = [sys.executable, "-m", "nmcompile", "compile"]
    command += [str(sparse_onnx), "-o", str(output)]
    environment = os.environ | {"TMPDIR": str(temporary)}

    def compile_for(seconds: float | None) -> None:
        """Run it whole, or kill it with SIGKILL."""
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()

    compile_for(None)
    rng = random.Random(0)
    for _ in range(60):
        compile_for(rng.uniform(0.5, 8.0))
        with load(output, threads=1):
            pass
    compile_for(None)
    assert list(output.parent.iterdir()) == [output]
    assert list(temporary.iterdir()) == []
