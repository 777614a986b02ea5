"""The pages of the site: those of docs/, and files that lie elsewhere in the repository."""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "runtime/FORMAT.md": "reference/artifact.md",
    "nmcompile/bench/RESULTS.md": "reference/results.md",
    "benchmarks/results/accuracy.md": "accuracy.md",
    "benchmarks/results/accuracy_vit.md": "accuracy-transformer.md",
}
"""Files of the repository that are pages as they stand."""

LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
"""What follows the text of a link, or of a picture; nothing with a scheme."""


def sources() -> Iterator[tuple[str, str]]:
    """(file of the repository, page of the site) of every page that somebody wrote."""
    yield from ELSEWHERE.items()
    for path in sorted((ROOT / DOCS).rglob("*.md")):
        source = path.relative_to(ROOT).as_posix()
        yield source, source.removeprefix(DOCS)


def write_pages(folder: Path) -> None:
    """Write all pages into `folder`, the pictures they show, and what the site loads.

    Raises:
        ValueError: a link leads to a file that is neither a page nor a picture.
    """
    shutil.copytree(ROOT / DOCS / "assets", folder / "assets")
    for source, page in sources():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), source, page, folder)
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text, encoding="utf-8")


def relinked(text: str, source: str, page: str, folder: Path) -> str:
    """Turn links between files of the repository into links between pages; copies pictures.

    Args:
        text: of the file `source`.
        source: its path in the repository.
        page: its path on the site.
        folder: gets the pictures, in `pictures/`.

    Raises:
        ValueError: a link leads to a file that is neither a page nor a picture.
    """
    pages = dict(sources())

    def renamed(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
        if not (ROOT / target).exists():
            return match[0]  # a generated page, or a mistake that MkDocs finds
        there = pages.get(target)
        if there is None and target.endswith((".png", ".svg")):
            there = f"pictures/{posixpath.basename(target)}"
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / target, folder / there)
        if there is None:
            raise ValueError(
                f"{source}: the link to {target}: expected a page or a picture, found another file "
                "of the repository; name it in words, or add it to ELSEWHERE"
            )
        path = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"]({path}{match['anchor'] or ''})"

    return outside_of_code(text, lambda prose: LINK.sub(renamed, prose))


def outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """Change what is not between fences."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)
