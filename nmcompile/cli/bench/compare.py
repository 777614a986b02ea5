"""`nmc bench compare`: which changes between two runs are real."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmcompile.cli.bench.plan import need_extra
from nmcompile.cli.guard import FAILED, guarded
from nmcompile.cli.options import JsonOption
from nmcompile.cli.output import print_json, print_table
from nmcompile.cli.printing import say
from nmcompile.errors import InputError

if TYPE_CHECKING:
    from nmcompile.bench.compare import Change, Comparison
    from nmcompile.bench.results import Case, Run


def parse_share(text: str) -> float:
    """Read `5%` or `0.05`."""
    word = text.strip()
    try:
        share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 10:
        raise typer.BadParameter(f"expected a share as 5% or 0.05, found {text!r}")
    return share


@guarded
def compare_runs(
    before: Annotated[
        Path, typer.Argument(metavar="A.json", exists=True, help="A result of nmc bench.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B.json", exists=True, help="A later one.")],
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SHARE", parser=parse_share, help="Slower by more is a regression: 5%, 0.05."
        ),
    ] = "5%",  # type: ignore[assignment] # parsed, as what a user gives
    as_json: JsonOption = False,
) -> None:
    """Say which cases became slower or faster from A to B, and which only seem to.

    Times are held against engines that are the same in both, where there are any, so that a slower
    day of the machine cancels out. Exits with 1 where nmcompile is slower by more than the
    threshold, and not by chance, and with 2 where a file cannot be used.
    """
    need_extra("nmc bench compare", "msgspec")
    from nmcompile.bench.compare import compare

    found = compare(_read(before), _read(after))
    regressions = found.regressions(threshold)
    if as_json:
        print_json(_document(found, regressions, threshold))
    else:
        _print(found, regressions, threshold)
    if regressions:
        raise typer.Exit(FAILED)


def _read(path: Path) -> "Run":
    """The result; what is none is wrong usage, because 1 stands for a regression."""
    from nmcompile.bench.results import read_run

    try:
        return read_run(path)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _print(found: "Comparison", regressions: list["Change"], threshold: float) -> None:
    for warning in found.warnings:
        say(f"warning: {warning}", err=True)
    real = [change for change in found.changes if change.verdict != "within noise"]
    if real:
        columns = ("case", "A ms", "B ms", "time", "95 % interval", "held against", "verdict")
        cells = [_cells(change, change in regressions) for change in real]
        print_table("changes", columns, cells, right=(1, 2, 3))
    quiet = len(found.changes) - len(real)
    say(f"{len(real)} real changes, {quiet} cases within noise")
    for name, cases in (("A", found.only_before), ("B", found.only_after)):
        if cases:
            say(f"only in {name}: {'; '.join(map(_title, cases))}")
    if regressions:
        say(f"{len(regressions)} regressions of more than {threshold:.1%}", err=True)


def _cells(change: "Change", regression: bool) -> list[str]:
    ratio = change.ratio
    return [
        _title(change.after),
        f"{change.before.median_ms:.3f}",
        f"{change.after.median_ms:.3f}",
        f"{ratio.value - 1:+.1%}",
        f"{ratio.low - 1:+.1%} to {ratio.high - 1:+.1%}",
        ", ".join(change.against) or "nothing: medians",
        "REGRESSION" if regression else change.verdict,
    ]


def _title(case: "Case") -> str:
    threads = f"{case.threads} thread{'s' * (case.threads > 1)}"
    words = [case.model, case.engine, case.pattern, case.target]
    return f"{' '.join(word for word in words if word)}, batch {case.batch}, {threads}"


def _document(found: "Comparison", regressions: list["Change"], threshold: float) -> dict[str, Any]:
    return {
        "threshold": threshold,
        "regressions": len(regressions),
        "changes": [
            {
                **_facts(change.after),
                "before_ms": change.before.median_ms,
                "after_ms": change.after.median_ms,
                "ratio": change.ratio.value,
                "ratio_low": change.ratio.low,
                "ratio_high": change.ratio.high,
                "against": list(change.against),
                "verdict": change.verdict,
                "regression": change in regressions,
            }
            for change in found.changes
        ],
        "only_before": [_facts(case) for case in found.only_before],
        "only_after": [_facts(case) for case in found.only_after],
        "warnings": found.warnings,
    }


def _facts(case: "Case") -> dict[str, Any]:
    names = "model engine pattern target dtype threads batch device".split()
    return {name: getattr(case, name) for name in names}
