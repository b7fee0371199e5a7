"""`sie key`: make a key for a server."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sie_core.server.keys import make_key, read_keys

_FILE_MODE = 0o640


def key(
    name: Annotated[
        str, typer.Argument(help="Who gets the key: letters, digits and ._@-", show_default=False)
    ],
    *,
    file: Annotated[
        Path | None,
        typer.Option(help="Key file of `sie serve --api-key-file`; the line is added to it."),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Let the key change what the server serves.")
    ] = False,
) -> None:
    """Make a key, and the line that lets it in.

    The key is printed once, on stdout, and kept nowhere; give it to who is to call.
    The line holds its hash; without --file it is printed on stderr, to be added to the key file.
    """
    secret, line = make_key(name, is_admin=admin)
    if file is None:
        typer.echo(f"add this line to the server's key file: {line}", err=True)
    else:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = before + ("\n" if before and not before.endswith("\n") else "") + f"{line}\n"
        read_keys(after, str(file))  # no key for a name that has one
        _replace(file, after)
        typer.echo(f"{file}: {name} was added", err=True)
    typer.echo(secret)


def _replace(file: Path, text: str) -> None:
    """Write a file as a whole: a server that reads it sees the old lines or the new ones."""
    target = file.resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
    if target.exists():
        shutil.copymode(target, beside)
        with contextlib.suppress(OSError, AttributeError):  # only root may give files away
            os.chown(beside, target.stat().st_uid, target.stat().st_gid)
    beside.replace(target)
