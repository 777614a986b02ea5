"""`python -m nmcompile.cli` is `nmc`, for checkouts that are not installed."""

from nmcompile.cli.app import main

if __name__ == "__main__":
    main()
