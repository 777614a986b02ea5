"""A command with subcommands that is a command itself."""

from typing import Any

from typer.core import TyperGroup

DEFAULT = "run"


class DefaultGroup(TyperGroup):
    """Runs its command `run` when the first word is the name of no other.

    Its help is that of `run`, and lists the others below the options.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default's name in front where no command is named."""
        if args[:1] != ["--help"] and (not args or args[0] not in self.commands):
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
