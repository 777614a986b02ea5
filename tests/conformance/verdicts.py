"""What every backend test came to, as committed, and the page of the documentation made of it."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx

from nmcompile.passes.operators.onnx.integers.forms import FORMS
from nmcompile.passes.operators.onnx.rewriting import DOMAIN
from nmcompile.passes.operators.onnx.settle import REWRITES
from nmcompile.passes.operators.onnx.table import ROWS
from nmcompile.passes.operators.table import Operator
from nmcompile.passes.operators.torch.formulas import LONGEST
from nmcompile.passes.operators.torch.settle import REWRITES as TORCH_REWRITES
from nmcompile.passes.operators.torch.table import ROWS as TORCH_ROWS
from tests.conformance.cases import Case
from tests.conformance.judge import ALIKE, FIXED, REFUSED, RIGHT, SHARED

ROOT = Path(__file__).parents[2]
COMMITTED = Path(__file__).with_name("verdicts.json")
PAGE = ROOT / "docs" / "operators.md"
AGAIN = "look at the difference, and run `python -m tests.conformance` if it is meant"

INTRODUCTION = """\
# Operators

What nmcompile believes of operators, and what ONNX's own backend tests have shown of it. An
operator that is not here, or outside of its row, runs in onnxruntime beside what is ours, or is
refused by name. Made by `python -m tests.conformance`.

Of {total} backend tests with plain inputs {right} are right as they are, and {fixed} with the
shapes, axes and weights that the tests feed as inputs made constants. Beside a convolution of ours
{shared} more are right in onnxruntime, {alike} give what onnxruntime gives, which differs from the
test, and {refused} are refused.
"""


def read() -> dict[str, str]:
    """Outcomes by the name of the test, as committed."""
    found: dict[str, str] = json.loads(COMMITTED.read_text())
    return found


def write(outcomes: Mapping[str, str], cases: list[Case]) -> None:
    """Commit other ones, and the page."""
    COMMITTED.write_text(json.dumps(dict(sorted(outcomes.items())), indent=0) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(outcomes, cases))


def page(outcomes: Mapping[str, str], cases: list[Case]) -> str:
    """docs/operators.md."""
    counts = _counts(outcomes, cases)
    total = Counter(outcomes.values())
    known = {row.name for row in ROWS}
    others = sorted(
        name
        for name, counted in counts.items()
        if name not in known and (counted[RIGHT] or counted[FIXED])
    )
    head = INTRODUCTION.format(
        total=len(outcomes),
        right=total[RIGHT],
        fixed=total[FIXED],
        shared=total[SHARED],
        alike=total[ALIKE],
        refused=total[REFUSED],
    )
    lines = [
        head,
        "## ONNX",
        "",
        "Versions are those of the operator, not of the operator set. Tests are counted where the "
        "operator is the only one: right, right with constants, in onnxruntime, refused.",
        "",
        "| operator | versions | first input | expected | else | tests |",
        "|---|---|---|---|---|---|",
        *(_onnx_row(row, counts[row.name]) for row in sorted(ROWS, key=lambda row: row.name)),
        "",
        "Folded where their inputs are constants, rewritten in terms of the above, or put so by "
        "ONNX's own function bodies, as far as those are made of it:",
        "",
        "| operator | tests |",
        "|---|---|",
        *(f"| {name} | {_tests(counts[name])} |" for name in others),
        "",
        "Of onnxruntime's own operators these are rewritten, where their scales and zero points "
        "are constants: "
        + ", ".join(name for name in sorted(FORMS) if name.startswith(DOMAIN))
        + ".",
        "",
        "## torch",
        "",
        "| operator | first operand | expected | else |",
        "|---|---|---|---|",
        *(_torch_row(row) for row in sorted(TORCH_ROWS, key=lambda row: row.name)),
        "",
        "Rewritten in terms of the above, where they can be: "
        + ", ".join(sorted(TORCH_REWRITES))
        + ".",
        "",
        "Any other operator is put as what torch makes of it "
        f"(`torch.export.default_decompositions`), where that is at most {LONGEST} of the above.",
        "",
    ]
    return "\n".join(lines)


def _counts(outcomes: Mapping[str, str], cases: list[Case]) -> Mapping[str, Counter[str]]:
    """Outcomes of tests of one node, by its operator."""
    counts: dict[str, Counter[str]] = {row.name: Counter() for row in ROWS}
    for case in cases:
        if len(case.model.graph.node) == 1 and case.name in outcomes:
            (name,) = case.operators
            counts.setdefault(name, Counter())[outcomes[case.name]] += 1
    return counts


def _onnx_row(row: Operator, counted: Counter[str]) -> str:
    versions = {
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and schema.name == row.name
    }
    kept = [str(version) for version in sorted(versions) if row.oldest <= version <= row.newest]
    rewritten = "rewritten" if row.name in REWRITES else ""
    return (
        f"| {row.name} | {', '.join(kept)} | {_dtypes(row)} | {_limits(row)} | {rewritten} "
        f"| {_tests(counted)} |"
    )


def _torch_row(row: Operator) -> str:
    rewritten = "rewritten" if row.name in TORCH_REWRITES else ""
    return f"| {row.name} | {_dtypes(row)} | {_limits(row)} | {rewritten} |"


def _dtypes(row: Operator) -> str:
    return ", ".join(sorted(row.dtypes))


def _limits(row: Operator) -> str:
    return "; ".join(limit.text for limit in row.limits)


def _tests(counted: Counter[str]) -> str:
    counts = (counted[RIGHT], counted[FIXED], counted[SHARED] + counted[ALIKE], counted[REFUSED])
    return " / ".join(map(str, counts))
