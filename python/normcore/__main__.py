"""Commands of the package: `python -m normcore info`, `bench` and `compare`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from .bench import require
from .config import facts, show_config

COMMANDS = {
    "info": "versions, instruction sets, threads, CUDA, methods; --json for programs",
    "bench": "measure how fast this machine is",
    "compare": "compare two saved runs of the benchmark: compare OLD NEW",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m normcore",
        description="Commands of normcore. Each has its own --help.",
        epilog="\n".join(f"  {name:<8}  {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    options = parser.parse_args(arguments)
    if options.command == "info":
        return info(options.arguments)

    require("ml_dtypes", "rich")
    from .bench import cli

    own = ["compare"] if options.command == "compare" else []
    return cli.main([*own, *options.arguments])


def info(arguments: Sequence[str]) -> int:
    """Print the facts of this installation."""
    parser = argparse.ArgumentParser(prog="python -m normcore info", description=COMMANDS["info"])
    parser.add_argument("--json", action="store_true", help="as one object of JSON")
    if parser.parse_args(arguments).json:
        print(json.dumps(facts(), indent=2))
    else:
        show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
