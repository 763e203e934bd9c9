"""Commands of the package: `python -m normcore bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .bench import require


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m normcore",
        description="Commands of normcore. `python -m normcore bench --help` tells more.",
    )
    parser.add_argument("command", choices=["bench"], help="measure how fast this machine is")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    options = parser.parse_args(arguments)

    require("ml_dtypes", "rich")
    from .bench import cli

    return cli.main(options.arguments)


if __name__ == "__main__":
    sys.exit(main())
