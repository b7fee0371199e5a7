"""The fields that say which model answers, and where: shared by all components of this package."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, SecretStr
from llama_index.core.schema import BaseComponent

from sie_core.client_holder import ClientHolder, sharing_given
from sie_core.errors import InvalidRequestError
from sie_core.setting_names import check_known, renamed
from sie_core.types import Mode

_SECRETS = ("api_key", "token")
"""Fields that are part of no dump and no pickle."""


class SIEBackend(BaseComponent):
    """Hold what calls the model, made from the fields, which cannot be assigned afterwards."""

    _aliases: ClassVar[Mapping[str, str]] = {"timeout_s": "timeout_seconds"}
    """Other names that the constructor and `model_copy` take for fields."""

    _unlosable: ClassVar[tuple[str, ...]] = ("client", "async_client")
    """Fields without which an unpickled component would quietly ask someone else."""

    model_config = ConfigDict(hide_input_in_errors=True)  # one of the inputs may be a secret

    base_url: str | None = Field(frozen=True, description="Address of an SIE server.")
    options: dict[str, Any] | None = Field(frozen=True, description="Options of the client.")
    gpu: str | None = Field(frozen=True, description="Machine profile on a remote cluster.")
    timeout_seconds: float | None = Field(frozen=True, description="Bound on one whole call.")
    api_key: SecretStr | None = Field(frozen=True, exclude=True, description="Server's key.")
    wait_for_capacity: bool = Field(frozen=True, description="Wait for a machine to start.")
    client: Any = Field(frozen=True, exclude=True, repr=False, description="Client to use instead.")
    async_client: Any = Field(frozen=True, exclude=True, repr=False, description="For async.")
    device: str | list[str] | None = Field(frozen=True, description="Device of the model.")
    mode: Mode = Field(frozen=True, description="Exact or fast, in-process.")
    dtype: str | None = Field(frozen=True, description="Data type of the in-process model.")
    num_threads: int | None = Field(frozen=True, description="Cores used on the CPU.")
    max_length: int | None = Field(frozen=True, description="Tokens per pair or text.")
    batch_size: int | None = Field(frozen=True, description="Pairs or texts per forward pass.")
    revision: str | None = Field(frozen=True, description="Revision of the model on the hub.")
    token: SecretStr | None = Field(frozen=True, exclude=True, description="Hub token.")
    cache_dir: str | None = Field(frozen=True, description="Folder for weights.")

    _holder: ClientHolder = PrivateAttr()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy, with the fields in `update` changed: those of the constructor, by its names.

        Raises:
            InvalidRequestError: A name is unknown, or a value is wrong.
        """
        changes = renamed(update or {}, self._aliases)
        check_known(changes, type(self).model_fields, component=type(self).__name__)
        for name in changes.keys() & _SECRETS:
            if isinstance(changes[name], str):
                changes[name] = SecretStr(changes[name])
        source = copy.deepcopy(self) if deep else self
        copied = super(SIEBackend, source).model_copy(update=changes)
        if changes:
            copied._holder = copied._make_holder()  # noqa: SLF001 - it is our own
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy deeply; clients and the hook are shared, as they stay the caller's."""
        return super().__deepcopy__(sharing_given(self, memo))

    def __getstate__(self) -> dict[str, Any]:
        """Leave secrets out of a pickle; copies are made without this method, and keep them.

        Raises:
            InvalidRequestError: A client cannot be pickled.
        """
        twin = self.model_copy()  # the base class deletes from the object what it cannot pickle
        twin.__dict__.update(dict.fromkeys(_SECRETS))
        if "on_rerank" in twin.__dict__:  # a function need not be one that can be pickled
            twin.__dict__["on_rerank"] = None
        state = super(SIEBackend, twin).__getstate__()
        lost = [name for name in self._unlosable if name not in state["__dict__"]]
        if lost:
            msg = f"{', '.join(lost)} cannot be pickled; use base_url and addresses instead"
            raise InvalidRequestError(msg)
        return state

    def warm_up(self) -> None:
        """Fetch and load the model now, so that the first call does not pay for it."""
        self._holder.warm_up()

    async def awarm_up(self) -> None:
        """Do what `warm_up` does, without blocking the event loop."""
        await self._holder.awarm_up()

    def close(self) -> None:
        """Release the model; the next call opens it again. May be called twice."""
        self._holder.close()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await self._holder.aclose()

    @abstractmethod
    def _make_holder(self) -> ClientHolder:
        """Make what calls the model."""

    @property
    def _backend_settings(self) -> dict[str, Any]:
        """The arguments of every kind of holder."""
        return {
            "base_url": self.base_url,
            "api_key": _revealed(self.api_key),
            "client": self.client,
            "async_client": self.async_client,
            "options": self.options,
            "gpu": self.gpu,
            "wait_for_capacity": self.wait_for_capacity,
            "timeout_seconds": self.timeout_seconds,
            "device": self.device,
            "mode": self.mode,
            "dtype": self.dtype,
            "num_threads": self.num_threads,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "revision": self.revision,
            "token": _revealed(self.token),
            "cache_dir": self.cache_dir,
        }


def backend_fields(
    *,
    options: Mapping[str, Any] | None,
    device: str | Sequence[str] | None,
    cache_dir: str | Path | None,
    **others: Any,
) -> dict[str, Any]:
    """Return the constructor's arguments as the fields have them: what JSON can hold."""
    return others | {
        "options": None if options is None else dict(options),
        "device": device if device is None or isinstance(device, str) else list(device),
        "cache_dir": None if cache_dir is None else str(cache_dir),
    }


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
