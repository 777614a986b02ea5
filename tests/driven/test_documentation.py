"""The documentation: its code blocks do what the pages say."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate.blocks import Block, all_blocks
from nmcompile.devices import Address, DeviceServer
from tests.conftest import need_isa
from tests.support.desk import MODULE, readers_values, set_desk
from tests.support.reader import Reader

PAGES = all_blocks()
KEY = "icelake"  # what the pages call a device
SHORT = (
    "README.md",
    "docs/get-started.md",
    "docs/reference/patterns.md",
    "docs/reference/targets.md",
    "docs/tasks/checkpoint.md",
    "docs/tasks/why-dense.md",
)
"""Pages that take seconds; the others compile more models, and are for `make test-all`."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    set_desk(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop(MODULE, None)


@pytest.mark.parametrize(
    "source", [pytest.param(it, marks=[pytest.mark.long] * (it not in SHORT)) for it in PAGES]
)
def test_code_blocks_run(
    source: str, desk: Path, tracker: Address, subtests: pytest.Subtests
) -> None:
    reader = Reader(readers_values(), {"HOST:9190": str(tracker)})
    for block in PAGES[source]:
        with subtests.test(line=block.line):
            run_block(reader, block, tracker)


def run_block(reader: Reader, block: Block, tracker: Address) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    if block.isa:
        need_isa(block.isa)
    if "--key" in block.code:
        with DeviceServer(KEY, port=0, tracker=tracker):
            printed = reader.run(block)
    else:
        printed = reader.run(block)
    if block.printed is not None:
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(block.printed, printed, options)
        assert same, f"{block.source}:{block.line} printed\n{printed}"
