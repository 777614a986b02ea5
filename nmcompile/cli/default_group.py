"""A command with subcommands that is a command itself."""

import difflib
import os
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

DEFAULT = "run"


class _OfGroup(typer.Context):
    """Where the default command is called: by the group's name alone, as a user calls it."""

    @property
    def command_path(self) -> str:
        """That of the group."""
        assert self.parent is not None
        return self.parent.command_path


class DefaultCommand(TyperCommand):
    """The command that a `DefaultGroup` runs; messages call it by the name of the group."""

    context_class = _OfGroup


class DefaultGroup(TyperGroup):
    """Runs its command `run` when the first word is the name of no other.

    Its help is that of `run`, and lists the others below the options.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default's name in front where no command is named."""
        if args[:1] != ["--help"] and (not args or args[0] not in self.commands):
            if args and not os.path.exists(args[0]):
                self._refuse_typo(ctx, args[0])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Those of the default."""
        return self.commands[DEFAULT].collect_usage_pieces(ctx)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """That of the default."""
        self.commands[DEFAULT].format_help_text(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Those of the default, then the other commands."""
        self.commands[DEFAULT].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def _refuse_typo(self, ctx: Any, word: str) -> None:
        others = [name for name in self.commands if name != DEFAULT]
        if near := difflib.get_close_matches(word, others, 1):
            ctx.fail(f"No such command or model {word!r}. Did you mean {near[0]!r}?")
