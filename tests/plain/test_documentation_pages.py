"""How pages become those of the site, and which blocks of them are run."""

from pathlib import Path

import pytest

from docs.generate import blocks, pages
from docs.generate.blocks import Block, blocks_of
from docs.generate.pages import relinked


@pytest.mark.parametrize(
    ("source", "page", "text", "expected"),
    [
        ("README.md", "index.md", "[a](docs/limits.md#gpus)", "[a](limits.md#gpus)"),
        ("docs/limits.md", "limits.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/tasks/x.md", "tasks/x.md", "[a](../../README.md)", "[a](../index.md)"),
        ("README.md", "index.md", "[a](https://a.b/c)", "[a](https://a.b/c)"),
        ("README.md", "index.md", "[a](#try-it)", "[a](#try-it)"),
        ("README.md", "index.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # for MkDocs to find
        (
            "README.md",
            "index.md",
            "```python\nx[0](docs/limits.md)\n```",
            "```python\nx[0](docs/limits.md)\n```",
        ),
    ],
)
def test_links_between_files_lead_to_pages(
    source: str, page: str, text: str, expected: str, tmp_path: Path
) -> None:
    assert relinked(text, source, page, tmp_path) == expected


def test_pictures_come_along(tmp_path: Path) -> None:
    text = "![a](../benchmarks/results/speedup.png)"
    found = relinked(text, "docs/performance.md", "performance.md", tmp_path)
    assert found == "![a](pictures/speedup.png)"
    assert (tmp_path / "pictures" / "speedup.png").exists()


def test_links_to_files_without_a_page_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"README.md: the link to pyproject.toml: expected a page"):
        relinked("[a](pyproject.toml)", "README.md", "index.md", tmp_path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    return tmp_path


def test_blocks_have_what_stands_beside_them(root: Path) -> None:
    (root / "a.md").write_text(
        "# A\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "<!-- isa: avx512f -->\n```sh\nnmc targets\n```\n\n"
        "*Not run by the tests: it needs\na GPU.*\n\n```sh\nnmc run\n```\n\n```\na tree\n```\n"
    )
    assert blocks_of("a.md") == [
        Block("a.md", 4, "python", "print(1)\n", printed="1\n"),
        Block("a.md", 13, "sh", "nmc targets\n", isa="avx512f"),
        Block("a.md", 20, "sh", "nmc run\n", not_run="it needs a GPU"),
    ]


def test_a_fence_of_an_unknown_language_is_refused(root: Path) -> None:
    (root / "a.md").write_text("```pyhton\nprint(1)\n```\n")
    with pytest.raises(ValueError, match=r"a\.md:2: a fence of 'pyhton': expected one of python"):
        blocks_of("a.md")


def test_every_written_page_is_a_page_once() -> None:
    found = [page for _, page in pages.sources()]
    assert len(set(found)) == len(found) and "index.md" in found and "operators.md" in found
