"""What every command has in common: how it fails, and what it never prints on stdout."""

import contextlib
import functools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TextIO, get_type_hints

import typer
import typer.models

from nmcompile.cli.printing import say
from nmcompile.errors import NmcompileError
from nmcompile.explain import machine_reason, missing_package
from nmcompile.wording import speaking

if TYPE_CHECKING:
    from nmcompile.progress import Progress

_P = ParamSpec("_P")

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT  # as shells report it


@dataclass
class Settings:
    """Global options of the running command; debug: show tracebacks."""

    debug: bool = False


SETTINGS = Settings()


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """Turn exceptions of a command into one line on stderr and an exit code.

    1 where it failed, 130 where the user interrupted it; usage errors (2) are typer's own.
    """

    @functools.wraps(command)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            with warnings.catch_warnings(), speaking(_options_of(command)):
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except NmcompileError as error:
            _fail(str(error))
        except Exception as error:
            # Of nmcompile.cli.bench.report it is "bench", as the extra is called.
            room = command.__module__.split(".")[2]
            if (reason := machine_reason(error) or missing_package(error, room)) is not None:
                _fail(str(reason))
            text = str(error).strip().partition("\n")[0] or "no message"
            _fail(
                f"unexpected {type(error).__name__}: {text}; this is a defect of nmcompile: run "
                "it again with NMC_DEBUG=1 and report what that prints"
            )

    return wrapper


def _options_of(command: Callable[..., None]) -> frozenset[str]:
    """The options of a command, as a user types them."""
    found = set()
    for name, hint in get_type_hints(command, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, typer.models.OptionInfo):
                found |= {*(option.param_decls or [f"--{name.replace('_', '-')}"])}
    return frozenset(found)


def _fail(message: str) -> None:
    if SETTINGS.debug:
        traceback.print_exc()
    typer.secho("error: ", fg=typer.colors.RED, err=True, nl=False)
    say(" ".join(message.splitlines()), err=True)
    raise typer.Exit(FAILED)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # Those of other libraries concern nmcompile's developers, not its users.
    if SETTINGS.debug or category is RuntimeWarning:
        say(f"warning: {message}", err=True)


def _own_stderr() -> TextIO:
    """Standard error for progress, also while `quiet` keeps others from it."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):  # not a file, as in tests
        return sys.stderr


@contextlib.contextmanager
def working() -> Iterator["Progress"]:
    """Show progress on stderr, where that is a terminal; keep libraries from writing to stdout."""
    from rich import progress
    from rich.console import Console

    console = Console(file=_own_stderr())
    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.TimeElapsedColumn(),
    )
    with (
        contextlib.redirect_stdout(sys.stderr),
        progress.Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not console.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("starting", total=None)

        def report(stage: str, done: int = 0, total: int = 0) -> None:
            bar.update(task, description=stage, completed=done, total=total or None)

        yield report
