"""The typer program: its subcommands, and how every one of them ends.

Exit codes: 0 done; 1 the work failed; 2 the call was wrong, or an extra is missing; 130 stopped by
Ctrl-C; 141 the reader of the output went away (`| head`), which is silent.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import sie_core
from sie_core.cli.backend import DEBUG
from sie_core.cli.bench import bench
from sie_core.cli.calibrate import calibrate
from sie_core.cli.compare import compare
from sie_core.cli.eval import evaluate
from sie_core.cli.fetch import fetch
from sie_core.cli.finetune import finetune
from sie_core.cli.health import health
from sie_core.cli.interrupt import EXIT_INTERRUPTED, MESSAGE
from sie_core.cli.key import key
from sie_core.cli.models import models
from sie_core.cli.rerank import rerank
from sie_core.cli.serve import serve
from sie_core.errors import InvalidRequestError, MissingDependencyError, SIEError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BROKEN_PIPE = 141


class _Program(TyperGroup):
    """Turn what a subcommand raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except (SIEError, OSError) as exc:
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            sys.stderr.write(f"error: {_explain(exc)}\n")
            is_usage = isinstance(exc, InvalidRequestError | MissingDependencyError)
            raise typer.Exit(EXIT_USAGE if is_usage else EXIT_FAILED) from None
        except KeyboardInterrupt:
            # A second Ctrl-C ends the process at once, without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            sys.stderr.write(MESSAGE)
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _explain(exc: Exception) -> str:
    if isinstance(exc, OSError) and not isinstance(exc, SIEError) and exc.filename is not None:
        return f"{exc.filename}: {exc.strerror}"
    return str(exc)


def _silence_stdout() -> None:
    """Point stdout at nothing, or Python's own flush at exit would complain about the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(*, value: bool) -> None:
    if value:
        typer.echo(f"sie {sie_core.__version__}")
        raise typer.Exit


program = typer.Typer(
    cls=_Program,
    name="sie",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


@program.callback()
def describe(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Rerank documents by relevance to a query, in this process or on an SIE server."""


program.command()(rerank)
program.command("eval")(evaluate)
program.command()(compare)
program.command()(models)
program.command()(fetch)
program.command()(serve)
program.command()(key)
program.command()(health)
program.command()(calibrate)
program.command()(bench)
program.command()(finetune)
