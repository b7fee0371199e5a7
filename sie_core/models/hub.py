"""The model hub: what it has cached on this machine, and what it has to download.

A hub that cannot be reached is found out about once per process, in bounded time, whatever hangs:
name resolution, the connection, or the answer.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sie_core.errors import (
    DeadlineExceededError,
    DownloadError,
    InvalidRequestError,
    MissingDependencyError,
    ModelError,
)
from sie_core.models.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OTHER_RUNTIMES,
    PICKLED_HEADS,
    SAFE_PATTERNS,
    check_adapter_files,
    check_adapter_folder,
    check_folder,
    check_weights,
    pickled_weights,
)
from sie_core.settings import SourceSettings

try:
    from huggingface_hub import HfApi, constants, get_token, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )
except ImportError as exc:
    _msg = f"{exc.name} is not installed; run: pip install 'sie-core[local]'"
    raise MissingDependencyError(_msg, name=exc.name) from exc

_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
_NOT_FOUND_STATUSES = frozenset({401, 404})

_unreachable: dict[str, str] = {}
"""Endpoint -> why it could not be reached, for as long as the process lives."""
_unreachable_lock = threading.Lock()

ResultT = TypeVar("ResultT")


def endpoint() -> str:
    """Return the hub's address: `HF_ENDPOINT`, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def find_cached(
    names: Iterable[str],
    settings: SourceSettings,
    *,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Return the folder in the hub's own cache that holds one of `names`, without a request.

    Args:
        names: Of one model, or adapter.
        settings: The revision, and what is allowed.
        check: Raises ModelError for a folder that will not do; None means a model's check.

    Raises:
        DownloadError: None of them is there, complete.
    """
    reason = f"{constants.HF_HUB_CACHE} has no snapshot of it"
    for name in names:
        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=settings.revision,
                    local_files_only=True,
                    allow_patterns=list(SAFE_PATTERNS),
                    ignore_patterns=list(OTHER_RUNTIMES),
                )
            )
        except HFValidationError as exc:
            msg = f"{name!r} is not a name that a model on the hub can have"
            raise DownloadError(msg) from exc
        except LocalEntryNotFoundError as exc:
            # Incomplete by the hub's listing; what is missing may be a file that nobody needs.
            snapshot = getattr(exc, "snapshot_path", None)
            if snapshot is None:
                continue
            folder = Path(snapshot)
        try:
            if check is None:
                check_folder(folder, allow_pickle=settings.allow_pickle)
            else:
                check(folder)
        except ModelError as exc:
            reason = str(exc)
        else:
            return folder
    raise DownloadError(reason)


def download(name: str, settings: SourceSettings, *, timeout_seconds: float | None = None) -> Path:
    """Download `name` from the hub into the hub's own cache, and return its folder.

    Args:
        name: The model's name on the hub.
        settings: Revision, token, and how long an unreachable hub is waited for.
        timeout_seconds: Bound on the whole; None waits until it is done.

    Raises:
        DownloadError: The hub cannot be reached, has no such model, or denies access to it.
        UnsupportedModelError: The model has pickled weights only, and they are not allowed.
        ModelLoadError: The model has no weights.
        InvalidRequestError: The token cannot be one.
        DeadlineExceededError: It was not done within `timeout_seconds`.
    """
    settings = replace(settings, token=_clean_token(settings.token))
    started = time.monotonic()
    files = _list_files(name, settings, timeout_seconds)
    check_weights(files, where=f"{name} on {endpoint()}", allow_pickle=settings.allow_pickle)
    heads = PICKLED_HEADS if settings.allow_pickle else ()
    patterns = [*SAFE_PATTERNS, *pickled_weights(files), *heads]
    try:
        spent = time.monotonic() - started
        bound = None if timeout_seconds is None else max(0.0, timeout_seconds - spent)
        folder = _call_within(bound, lambda: _fetch(name, settings, patterns))
    except DeadlineExceededError as exc:
        raise _deadline_exceeded(name, timeout_seconds) from exc
    check_folder(folder, allow_pickle=settings.allow_pickle)
    return folder


def download_adapter(name: str, settings: SourceSettings) -> Path:
    """Download the adapter `name` from the hub into the hub's own cache, and return its folder.

    Raises:
        DownloadError: The hub cannot be reached, has no such adapter, or denies access to it.
        UnsupportedModelError: The adapter has pickled weights only.
        ModelLoadError: It is not an adapter.
    """
    settings = replace(settings, token=_clean_token(settings.token))
    files = _list_files(name, settings, None)
    check_adapter_files(files, where=f"{name} on {endpoint()}")
    folder = _fetch(name, settings, [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "LICENSE*", "NOTICE*"])
    check_adapter_folder(folder)
    return folder


def _fetch(name: str, settings: SourceSettings, patterns: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(
                name,
                revision=settings.revision,
                token=settings.token,
                endpoint=endpoint(),
                allow_patterns=patterns,
                ignore_patterns=list(OTHER_RUNTIMES),
            )
        )
    except Exception as exc:  # noqa: BLE001 # see _translate
        raise _translate(exc, name, settings) from None


def _clean_token(token: str | None) -> str | None:
    """Return `token` without the line break that one read from a file ends with.

    HTTP libraries quote a header that they cannot send, in errors and debug logs.
    """
    if token is None or not token.strip():
        return None
    token = token.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        msg = (
            "the hub token holds a blank, a line break or a letter beyond ASCII, so it cannot be "
            "one; check where it is read from"
        )
        raise InvalidRequestError(msg)
    return token


def _list_files(name: str, settings: SourceSettings, timeout_seconds: float | None) -> list[str]:
    """Ask the hub which files `name` has; this is also how its reachability is found out."""
    address = endpoint()
    _check_may_ask(address)
    patience = settings.hub_timeout_seconds
    bound = patience if timeout_seconds is None else min(patience, timeout_seconds)

    def ask() -> list[str]:
        api = HfApi(endpoint=address, token=settings.token)
        info = api.model_info(name, revision=settings.revision, timeout=patience)
        return [sibling.rfilename for sibling in info.siblings or ()]

    try:
        return _call_within(bound, ask)
    except DeadlineExceededError as exc:
        if bound < patience:
            raise _deadline_exceeded(name, timeout_seconds) from exc
        raise _remember_unreachable(address, str(exc)) from exc
    except (HfHubHTTPError, HFValidationError) as exc:
        raise _translate(exc, name, settings) from None
    except Exception as exc:  # noqa: BLE001 # see _translate
        raise _remember_unreachable(address, _describe(exc, settings)) from None


def _check_may_ask(address: str) -> None:
    """Raise where it is known beforehand that asking the hub leads to nothing."""
    for variable in _OFFLINE_VARIABLES:
        if os.environ.get(variable, "").upper() in _TRUE:
            msg = f"{address} was not asked, because {variable} is set"
            raise DownloadError(msg)
    if constants.HF_HUB_OFFLINE:
        msg = f"{address} was not asked, because huggingface_hub is in offline mode"
        raise DownloadError(msg)
    with _unreachable_lock:
        reason = _unreachable.get(address)
    if reason is not None:
        raise _unreachable_error(address, reason)


def _remember_unreachable(address: str, reason: str) -> DownloadError:
    with _unreachable_lock:
        _unreachable.setdefault(address, reason)
    return _unreachable_error(address, reason)


def _unreachable_error(address: str, reason: str) -> DownloadError:
    return DownloadError(f"{address} could not be reached: {reason}")


def _deadline_exceeded(name: str, timeout_seconds: float | None) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"fetching {name} from {endpoint()} took longer than the {timeout_seconds:g} seconds "
        "allowed; allow more time, or call warm_up() beforehand"
    )


def _call_within(seconds: float | None, function: Callable[[], ResultT]) -> ResultT:
    """Call `function`, and raise DeadlineExceededError if it has not returned within `seconds`.

    A call that hangs, in the system's name resolution for instance, cannot be stopped. It is left
    behind in a daemon thread, which does not keep the process alive.
    """
    if seconds is None:
        return function()
    answers: queue.SimpleQueue[tuple[ResultT | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(), None))
        except Exception as exc:  # noqa: BLE001 # raised again by the waiting thread
            answers.put((None, exc))

    threading.Thread(target=run, name="sie-hub", daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        msg = f"no answer within {seconds:g} seconds"
        raise DeadlineExceededError(msg) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # without an error there is a result


def _translate(exc: Exception, name: str, settings: SourceSettings) -> DownloadError:
    """Say what the hub's answer means.

    Any exception will do: huggingface_hub lets those of its HTTP library through, and which library
    that is depends on its version. None is chained, because its text may quote the token.
    """
    revision = f" revision {settings.revision!r} of" if settings.revision else ""
    if isinstance(exc, GatedRepoError):
        return DownloadError(
            f"{name} is gated; accept its terms at {endpoint()}/{name}, and pass a token "
            "(token=…, or HF_TOKEN)"
        )
    if isinstance(exc, RevisionNotFoundError):
        return DownloadError(f"{endpoint()} has no{revision} {name}")
    if isinstance(exc, HFValidationError):
        return DownloadError(f"{name!r} is not a name that a model on the hub can have")
    if isinstance(exc, HfHubHTTPError) and exc.response.status_code in _NOT_FOUND_STATUSES:
        return DownloadError(
            f"{endpoint()} shows no{revision} {name} (HTTP {exc.response.status_code}); check the "
            "spelling, and if it is private pass a token that may read it (token=…, or HF_TOKEN)"
        )
    return DownloadError(f"fetching it from {endpoint()} failed: {_describe(exc, settings)}")


def _describe(exc: Exception, settings: SourceSettings) -> str:
    """Return the first line of what `exc` says, with tokens taken out."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__
    for token in (settings.token, get_token()):
        if token:
            text = text.replace(token, "***")
    text = re.sub(r"hf_\w+", "***", text)
    return re.sub(r"//[^/\s@]+@", "//***@", text)
