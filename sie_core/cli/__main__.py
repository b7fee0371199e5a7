"""The console script `sie`, also run as `python -m sie_core.cli`."""

from __future__ import annotations

import logging
import sys

from sie_core.cli.interrupt import EXIT_INTERRUPTED, MESSAGE

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
    except KeyboardInterrupt:
        sys.stderr.write(MESSAGE)
        sys.exit(EXIT_INTERRUPTED)
    # What the library logs as a warning, the command says itself, once and in its own words.
    logging.getLogger("sie_core").addHandler(logging.NullHandler())
    program(prog_name="sie")


if __name__ == "__main__":
    main()
