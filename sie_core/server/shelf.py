"""`Shelf`: the models that a server has, how each stands, and who may name which."""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sie_core.errors import InvalidRequestError, ModelNotFoundError, SIEError, UnsupportedModelError
from sie_core.local import LocalClient
from sie_core.local.registry import LoadedModel
from sie_core.models import catalog
from sie_core.models.description import describe
from sie_core.models.recognition import Kind
from sie_core.server.failures import Failure, RefusedError, failure_of
from sie_core.server.settings import ModelSettings, Profile, ServerSettings

_logger = logging.getLogger(__name__)

State = Literal["unloaded", "loading", "loaded", "failed"]

_OUTPUTS: dict[Kind, tuple[str, ...]] = {
    "causal-reranker": ("score",),
    "cross-encoder": ("score",),
    "dense": ("dense",),
    "late-interaction": ("multivector", "score"),
}
"""What each kind of model gives, in the words of `GET /v1/models`."""

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
"""A name on the hub, which no path is that leads out of a folder."""

_FIRST_GUESS_SECONDS = 5.0
"""How long a load takes, where none was seen yet: what sie-server says of every load."""

_MAX_STRANGERS = 1024
"""Models that callers named by themselves and that are remembered."""


@dataclass(slots=True, eq=False)
class Shelved:
    """One model: what it was told to be, and how it stands.

    Attributes:
        settings: What it was told to be.
        loading: While it is being loaded.
        since: When that began, in monotonic seconds.
        load_seconds: How long the last load took.
        failure: Why it could not be loaded.
        attempts: How often in a row it could not.
        num_loads: How often it was loaded.
        num_failed_loads: How often it could not be.
        kind: What its files are, once they were looked at.
        max_length: Tokens of a sequence, as far as that is known before it is loaded.
        dims: Numbers per vector, by output, as far as they are known.
    """

    settings: ModelSettings
    loading: asyncio.Task[None] | None = None
    since: float = 0.0
    load_seconds: float | None = None
    failure: Exception | None = None
    attempts: int = 0
    num_loads: int = 0
    num_failed_loads: int = 0
    kind: Kind | None = None
    max_length: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As callers name it."""
        return self.settings.name

    def public(self, message: str) -> str:
        """Return a message as callers may read it: they need not know this machine's folders."""
        return message.replace(self.settings.origin, self.name)


class Shelf:
    """Find models by name, load them, and say how they stand. All on one event loop.

    Args:
        settings: What is on it.
        client: Loads and holds the models.
    """

    def __init__(self, settings: ServerSettings, client: LocalClient) -> None:
        self._settings = settings
        self._client = client
        self._listed = {model.name: Shelved(model) for model in settings.models}
        self._strangers: OrderedDict[str, Shelved] = OrderedDict()
        self._load_seconds: float | None = None

    def __iter__(self) -> Any:
        """Iterate over the models, those that were listed first."""
        return iter([*self._listed.values(), *self._strangers.values()])

    def find(self, name: str) -> Shelved:
        """Return the model that a caller named.

        Raises:
            ModelNotFoundError: The server does not serve it.
        """
        found = self._listed.get(name) or self._strangers.get(name)
        if found is not None:
            return found
        if self._settings.allow_any_model and is_hub_name(name):
            found = self._strangers[name] = Shelved(ModelSettings(name=name))
            if len(self._strangers) > _MAX_STRANGERS:
                self._strangers.popitem(last=False)
            return found
        near = difflib.get_close_matches(name, self._listed, n=3)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        msg = f"Model {name!r} not found{hint}"
        raise ModelNotFoundError(msg)

    def loaded(self, shelved: Shelved) -> LoadedModel | None:
        """Return a model if it is in memory."""
        return self._client.loaded_model(shelved.settings.origin)

    def state(self, shelved: Shelved) -> State:
        """Say how a model stands."""
        if self.loaded(shelved) is not None:
            return "loaded"
        if shelved.loading is not None:
            return "loading"
        return "unloaded" if shelved.failure is None else "failed"

    async def ready(self, shelved: Shelved) -> None:
        """Have a model loaded, waiting as long as the settings say.

        Raises:
            RefusedError: It is not loaded yet, or could not be.
        """
        if self.loaded(shelved) is not None:
            return
        loading = self._begin(shelved)
        patience = self._settings.wait_for_load_seconds
        await asyncio.wait({loading}, timeout=patience)
        if not loading.done():
            raise RefusedError(self.not_yet(shelved))
        if shelved.failure is not None:
            raise RefusedError(_load_failed(shelved))

    async def load(self, shelved: Shelved) -> None:
        """Have a model loaded, however long that takes.

        Raises:
            RefusedError: It could not be.
        """
        if self.loaded(shelved) is None:
            await asyncio.wait({self._begin(shelved)})
            if shelved.failure is not None:
                raise RefusedError(_load_failed(shelved))

    async def preload(self) -> None:
        """Load the models that are to be there from the start.

        Raises:
            SIEError: One could not be loaded.
        """
        chosen = [shelved for shelved in self._listed.values() if shelved.settings.preload]
        await asyncio.gather(*(self._begin(shelved) for shelved in chosen))
        failures = [shelved.failure for shelved in chosen if shelved.failure is not None]
        if failures:
            raise failures[0]

    async def reload(self, shelved: Shelved, source: str | None) -> int:
        """Load a model's files anew beside the old ones, and let calls change over to them.

        Args:
            shelved: Which.
            source: Another model or folder that the name is to mean from now on; None: the same.

        Returns:
            How many loaded models were replaced.

        Raises:
            SIEError: The new ones could not be loaded; the old ones serve on.
        """
        origin = shelved.settings.origin
        chosen = source or self._client.swapped_for(origin) or origin
        num_replaced = await asyncio.to_thread(self._client.swap, origin, chosen)
        shelved.failure, shelved.attempts = None, 0
        shelved.kind = shelved.max_length = None
        return num_replaced

    def profile(self, shelved: Shelved, name: object) -> Profile:
        """Return a profile by its name.

        Raises:
            InvalidRequestError: The model has no such profile.
        """
        profiles = {"default": Profile(), **shelved.settings.profiles}
        found = profiles.get(name) if isinstance(name, str) else None
        if found is None:
            msg = f"Profile {name!r:.80} not found. Available: {sorted(profiles)}"
            raise InvalidRequestError(msg)
        return found

    def adapter(self, shelved: Shelved, name: object) -> str:
        """Return where an adapter that a caller named comes from.

        Raises:
            InvalidRequestError: The server does not serve it for this model.
        """
        loras = shelved.settings.loras
        if isinstance(name, str) and name in loras:
            return loras[name]
        is_stranger = isinstance(name, str) and is_hub_name(name)
        if self._settings.allow_any_model and isinstance(name, str) and is_stranger:
            return name
        known = f"it has {', '.join(sorted(loras))}" if loras else "it has none"
        msg = f"{shelved.name} has no adapter {name!r:.80} on this server; {known}"
        raise InvalidRequestError(msg)

    async def describe(self, shelved: Shelved) -> dict[str, Any]:
        """Say of a model what `GET /v1/models` says."""
        if shelved.kind is None:
            await asyncio.to_thread(self._look_at, shelved)
        state = self.state(shelved)
        model, error = self.loaded(shelved), shelved.failure
        outputs = _OUTPUTS[shelved.kind] if shelved.kind is not None else ()
        profiles = ("default", *shelved.settings.profiles)
        return {
            "name": shelved.name,
            "inputs": ["text"],
            "outputs": list(outputs),
            "dims": dict(shelved.dims),
            "loaded": state == "loaded",
            "state": state,
            "last_error": None if error is None else shelved.public(failure_of(error).message),
            "max_sequence_length": shelved.max_length if model is None else model.model.max_length,
            "profiles": {name: {"is_default": name == "default"} for name in profiles},
            "loras": sorted(shelved.settings.loras),
            # What the clients of OpenAI's models read; when a model was made is not known.
            "id": shelved.name,
            "object": "model",
            "created": 0,
            "owned_by": shelved.name.partition("/")[0],
        }

    def _look_at(self, shelved: Shelved) -> None:
        """Find out what a model is, without the hub: from its files here, or the catalogue."""
        spec = catalog.find(shelved.settings.origin)
        if spec is not None:
            shelved.kind, shelved.max_length = spec.kind, spec.max_length
            if spec.embedding_size is not None:
                vectors = (output for output in _OUTPUTS[spec.kind] if output != "score")
                shelved.dims = dict.fromkeys(vectors, spec.embedding_size)
            return
        folder = Path(shelved.settings.origin).expanduser()
        try:
            if folder.is_dir():
                shelved.kind = describe(folder).kind
        except SIEError as exc:
            _logger.warning("%s: %s", shelved.name, exc)

    def _begin(self, shelved: Shelved) -> asyncio.Task[None]:
        """Start to load a model, unless that is going on, or failed a moment ago."""
        if shelved.loading is not None:
            return shelved.loading
        rest = self._settings.retry_failed_load_seconds - (time.monotonic() - shelved.since)
        if shelved.failure is not None and rest > 0:
            raise RefusedError(_load_failed(shelved))
        shelved.loading = asyncio.create_task(self._load(shelved))
        return shelved.loading

    async def _load(self, shelved: Shelved) -> None:
        """Load a model and run it once; its record says how that went."""
        origin = shelved.settings.origin
        shelved.since = time.monotonic()
        try:
            await asyncio.to_thread(self._client.warm_up, origin)
        except Exception as exc:  # noqa: BLE001  it belongs to those who ask for the model
            shelved.failure, shelved.attempts = exc, shelved.attempts + 1
            shelved.num_failed_loads += 1
            _logger.error("%s could not be loaded: %s", shelved.name, exc)  # noqa: TRY400
        else:
            shelved.failure, shelved.attempts = None, 0
            shelved.num_loads += 1
            seconds = time.monotonic() - shelved.since
            shelved.load_seconds = self._load_seconds = seconds
            _logger.info("%s was loaded in %.1f s", shelved.name, seconds)
        finally:
            shelved.since = time.monotonic() if shelved.failure is not None else shelved.since
            shelved.loading = None

    def not_yet(self, shelved: Shelved) -> Failure:
        """Tell a caller when the model will be there, by how long the last load took.

        A load that has taken longer than thought is expected to take half as long again.
        """
        guess = shelved.load_seconds or self._load_seconds or _FIRST_GUESS_SECONDS
        passed = 0.0 if shelved.loading is None else time.monotonic() - shelved.since
        return Failure(
            status=503,
            code="MODEL_LOADING",
            message=f"Model {shelved.name!r} is loading, please retry",
            retry_after_seconds=max(guess - passed, passed / 2, 1.0),
        )


def is_hub_name(name: str) -> bool:
    """Say whether a name can only be one of the hub's, not a folder of this machine."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _load_failed(shelved: Shelved) -> Failure:
    error = shelved.failure
    fields: Mapping[str, Any] = {
        "error_class": type(error).__name__,
        "attempts": shelved.attempts,
        "permanent": isinstance(error, UnsupportedModelError),
    }
    message = f"Model {shelved.name!r} failed to load: {shelved.public(str(error))}"
    return Failure(status=502, code="MODEL_LOAD_FAILED", message=message, fields=fields)
