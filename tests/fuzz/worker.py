"""Checks cases of one kind: reads their seeds, a line each, and answers what came of them."""

import importlib
import sys
import tempfile
import traceback
from pathlib import Path


def main() -> None:
    kind, base = sys.argv[1:]
    check = importlib.import_module(f"tests.fuzz.{kind}").check
    answers = sys.stdout
    sys.stdout = sys.stderr
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            try:
                result = check(Path(base), Path(scratch), int(line))
            except BaseException as error:
                trace = traceback.extract_tb(error.__traceback__)[-1]
                text = str(error).strip().partition("\n")[0][:200]
                result = f"{type(error).__name__} at {trace.name}:{trace.lineno}: {text}"
            print(" ".join(result.split()), file=answers, flush=True)


if __name__ == "__main__":
    main()
