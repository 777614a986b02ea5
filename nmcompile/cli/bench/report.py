"""`nmc bench report`: results as a page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from nmcompile.cli.bench.plan import need_extra
from nmcompile.cli.checks import check_outputs
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import JsonOption
from nmcompile.cli.output import print_json
from nmcompile.cli.printing import say
from nmcompile.errors import InputError
from nmcompile.tables import size


@guarded
def report_runs(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="RUN.json...", help="What nmc bench wrote; several stand together."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="REPORT.html",
            help="The page to write; missing folders are made.",
        ),
    ],
    title: Annotated[
        str, typer.Option(help="Heading of the page; the runs' labels where it is empty.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Make one page of benchmark results: tables and plots, in one HTML file that loads nothing.

    The same case of several runs or machines stands side by side.
    """
    need_extra("nmc bench report", "msgspec", "jinja2", "vl_convert")
    from nmcompile.bench.report import render_report
    from nmcompile.bench.results import read_run
    from nmcompile.runtime.files import replace_file

    for path in files:
        if any(mark in path.name for mark in "*?[") and not path.exists():
            raise InputError(
                f"no file matches {path}: expected results of nmc bench; measure first, or name "
                "their folder"
            )
        if path.absolute() == output.absolute():
            raise InputError(
                f"{output} is a result and the report at once, and would be overwritten: name "
                "another output, such as report.html"
            )
    check_outputs(output)
    with working() as progress:
        progress("reading")
        runs = [read_run(path) for path in files]
        progress("drawing")
        page = render_report(runs, title).encode()
        replace_file(output, [page])
    cases = sum(len(run.cases) for run in runs)
    if as_json:
        print_json({"report": str(output), "runs": len(runs), "cases": cases, "bytes": len(page)})
        return
    say(f"{output}: {cases} cases of {len(runs)} run{'s' * (len(runs) != 1)}, {size(len(page))}")
