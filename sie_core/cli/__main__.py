"""The console script `sie`, also run as `python -m sie_core.cli`."""

from __future__ import annotations

import sys

EXIT_USAGE = 2


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        from sie_core.cli.program import program
    except ModuleNotFoundError as exc:
        if exc.name not in {"typer", "rich"}:
            raise
        sys.stderr.write(
            f"error: the sie command needs {exc.name}, which is not installed; "
            "run: pip install 'sie-core[cli]'\n"
        )
        sys.exit(EXIT_USAGE)
    program(prog_name="sie")


if __name__ == "__main__":
    main()
