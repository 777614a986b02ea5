"""The code blocks of pages, and what is said of them, for the test that runs them.

A block belongs to the page it stands on: those above it have run before it. Beside a fence may
stand

    <!-- isa: avx512f -->                       before it: it needs a CPU that has this
    *Not run by the tests: why.*                before it: nobody runs it, and the reader sees why
    ```text ... ```                             right after it: what it prints; `...` for anything
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs.generate.pages import ROOT, sources

LANGUAGES = ("python", "sh")
OTHERS = ("", "text", "json")
"""Of fences that nobody would run."""

ISA = re.compile(r"<!-- isa: (\w+) -->")
NOT_RUN = re.compile(r"\*Not run by the tests: (.+)\.\*", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fence of a page.

    source, line: the file of the repository, and where in it the code begins, from 1.
    language: one of LANGUAGES.
    isa: what its CPU has to have, or "".
    not_run: why the tests do not run it, or "".
    printed: what the page says that it prints, or None.
    """

    source: str
    line: int
    language: str
    code: str
    isa: str = ""
    not_run: str = ""
    printed: str | None = None


def blocks_of(source: str) -> list[Block]:
    """The code blocks of a file, in order.

    Raises:
        ValueError: a fence says no language that is known here.
    """
    tokens = MarkdownIt().parse((ROOT / source).read_text(encoding="utf-8"))
    return list(_blocks(source, tokens))


def all_blocks() -> dict[str, list[Block]]:
    """The blocks of every page that has some, by its file."""
    found = {source: blocks_of(source) for source, _ in sources()}
    return {source: blocks for source, blocks in found.items() if blocks}


def account() -> str:
    """A page that counts the blocks, and names those that the tests do not run."""
    blocks = [block for page in all_blocks().values() for block in page]
    left = [block for block in blocks if block.not_run]
    bound = [block for block in blocks if block.isa and not block.not_run]
    names = ", ".join(sorted({f"`{block.isa}`" for block in bound}))
    rows = [f"| `{block.source}`, line {block.line} | {block.not_run} |" for block in left]
    return "\n".join(
        [
            "# Code on these pages",
            "",
            f"There are {len(blocks)} code blocks on these pages. The tests run "
            f"{len(blocks) - len(left)} of them, page by page, as a reader would; {len(bound)} of "
            f"those need {names}, for which twins stand in on a CPU with AVX2. Where a page shows "
            "what a block prints, that is compared.",
            "",
            f"{len(left)} are not run:",
            "",
            "| block | why |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def _blocks(source: str, tokens: list[Token]) -> Iterator[Block]:
    for at, token in enumerate(tokens):
        if token.type != "fence" or token.map is None:
            continue
        line = token.map[0] + 2
        if token.info not in (*LANGUAGES, *OTHERS):
            raise ValueError(
                f"{source}:{line}: a fence of {token.info!r}: expected one of "
                f"{', '.join(LANGUAGES)}, which tests run, or text"
            )
        if token.info not in LANGUAGES:
            continue
        before = tokens[at - 1] if at else None
        text = ""
        if before is not None and before.type == "html_block":
            text = before.content
        elif before is not None and before.type == "paragraph_close":
            text = tokens[at - 2].content
        after = tokens[at + 1] if at + 1 < len(tokens) else None
        isa, not_run = ISA.search(text), NOT_RUN.fullmatch(text.strip())
        yield Block(
            source,
            line,
            token.info,
            token.content,
            isa[1] if isa else "",
            " ".join(not_run[1].split()) if not_run else "",
            after.content if after and after.type == "fence" and after.info == "text" else None,
        )
