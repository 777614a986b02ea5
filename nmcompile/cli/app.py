"""The command line: which commands there are, and the options before them."""

import gc
from typing import Annotated

import typer

from nmcompile.cli.bench.command import bench_app
from nmcompile.cli.bundle import bundle_artifacts
from nmcompile.cli.compile import compile_model, enforce_model, fold_model
from nmcompile.cli.devices import device_app, show_devices
from nmcompile.cli.guard import SETTINGS
from nmcompile.cli.inspect import inspect_any, list_targets
from nmcompile.cli.printing import say
from nmcompile.cli.quantize import quantize_model
from nmcompile.cli.run import run_artifact
from nmcompile.cli.update import update_artifact
from nmcompile.version import VERSION

COLLECT_AFTER = 20_000
"""New objects before Python looks for circles among them.

Its own 700 would have it walk through every module and graph time and again while they are made.
"""

app = typer.Typer(
    help="Compiles trained N:M and 1xN sparse CNNs, and runs them.",
    epilog="Exit codes: 0 done, 1 it failed (the last line on stderr says why), 2 wrong usage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain text: boxes break messages across lines, and loading rich slows every start.
    rich_markup_mode=None,
)
app.command("compile")(compile_model)
app.command("update")(update_artifact)
app.command("run")(run_artifact)
app.command("bundle")(bundle_artifacts)
app.command("inspect")(inspect_any)
app.command("fold")(fold_model)
app.command("enforce")(enforce_model)
app.command("quantize")(quantize_model)
app.add_typer(
    bench_app, name="bench", help="Measure latency, beside other engines; compare results."
)
app.command("targets")(list_targets)
app.add_typer(device_app, name="device")
app.command("devices")(show_devices)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"nmcompile {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="NMC_DEBUG", help="Show tracebacks of errors.")
    ] = False,
) -> None:
    SETTINGS.debug = debug


def main() -> None:
    """Run `nmc` with the arguments of this process, and end it with the exit code."""
    gc.set_threshold(COLLECT_AFTER)
    app(prog_name="nmc")
