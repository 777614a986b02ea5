"""Put the pages of the documentation together, for MkDocs to make a site of.

python -m docs.generate [--output out/docs]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from docs.generate.blocks import account
from docs.generate.pages import ROOT, write_pages
from docs.generate.reference import write_reference


def main() -> None:
    """Write the pages that people and programs have made into one folder."""
    parser = argparse.ArgumentParser(description="Put the pages of the documentation together.")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "docs")
    folder = parser.parse_args().output
    shutil.rmtree(folder, ignore_errors=True)
    write_pages(folder)
    write_reference(folder)
    (folder / "blocks.md").write_text(account(), encoding="utf-8")


if __name__ == "__main__":
    main()
