"""`nmc`, and `python -m nmcompile`: the command line, which takes a moment to import."""

import signal
import sys


def main() -> None:
    """Run `nmc`; ctrl-C ends it quietly while it starts, too."""
    try:
        from nmcompile.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(128 + signal.SIGINT)  # as shells report it


if __name__ == "__main__":
    main()
