"""`SIEComponent`: a component's life, its copies, and what of it is written down."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from haystack import default_from_dict, default_to_dict
from haystack.utils import ComponentDevice, Secret
from haystack.utils.auth import EnvVarSecret

from haystack_integrations.common.sie.arguments import (
    MODEL_KWARGS,
    TOKENIZER_KWARGS,
    agreed,
    device_name,
    has_client,
    plain_device,
    secret_value,
    translated,
    without_torch,
)
from sie_core.client_holder import ClientHolder, sharing_given
from sie_core.errors import InvalidRequestError
from sie_core.score_cache import ScoreCache
from sie_core.types import Mode

API_KEY = Secret.from_env_var("SIE_API_KEY", strict=False)
HUB_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)

_NOT_SERIALISED = {"client", "async_client", "timeout_s", "on_rerank"}
"""Constructor arguments missing in `to_dict`: live objects, and the second name of a timeout."""


class SIEComponent:
    """Hold what calls the model; the constructor's arguments stay as attributes.

    A copy of the component keeps its secrets; a pickle keeps the names of environment variables,
    which are read again, and no values.
    """

    _constructor: ClassVar[Any]
    """The `__init__` whose parameters are serialised."""

    _holder: ClientHolder

    def _make_holder(self) -> ClientHolder:
        """Make what calls the model."""
        raise NotImplementedError  # no abstract method: Haystack has a metaclass of its own

    def _take_backend(
        self,
        *,
        base_url: str | None,
        model: str | Path,
        gpu: str | None,
        options: Mapping[str, Any] | None,
        timeout_s: float | None,
        timeout_seconds: float | None,
        api_key: Secret | None,
        wait_for_capacity: bool,
        device: ComponentDevice | str | Sequence[str] | None,
        token: Secret | None,
        model_kwargs: Mapping[str, Any] | None,
        tokenizer_kwargs: Mapping[str, Any] | None,
        batch_size: int | None,
        mode: Mode,
        dtype: str | None,
        num_threads: int | None,
        max_length: int | None,
        revision: str | None,
        cache_dir: str | Path | None,
        client: Any,
        async_client: Any,
    ) -> None:
        """Keep the arguments that say which model answers, and where, in forms for YAML."""
        self.base_url = base_url
        self.model = str(model)
        self.gpu = gpu
        self.options = None if options is None else dict(options)
        self.timeout_seconds = agreed("timeout_seconds", timeout_seconds, "timeout_s", timeout_s)
        self.api_key = api_key
        self.wait_for_capacity = wait_for_capacity
        self.device = plain_device(device)
        self.token = token
        self.model_kwargs = without_torch(model_kwargs)
        self.tokenizer_kwargs = None if tokenizer_kwargs is None else dict(tokenizer_kwargs)
        self.batch_size = batch_size
        self.mode = mode
        self.dtype = dtype
        self.num_threads = num_threads
        self.max_length = max_length
        self.revision = revision
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.client = client
        self.async_client = async_client

    @property
    def _backend_settings(self) -> dict[str, Any]:
        """The arguments of every kind of holder."""
        from_model = translated("model_kwargs", self.model_kwargs, MODEL_KWARGS)
        from_tokenizer = translated("tokenizer_kwargs", self.tokenizer_kwargs, TOKENIZER_KWARGS)
        max_length = from_tokenizer.get("max_length")
        return {
            "base_url": self.base_url,
            "api_key": secret_value("api_key", self.api_key),
            "client": self.client,
            "async_client": self.async_client,
            "options": self.options,
            "gpu": self.gpu,
            "wait_for_capacity": self.wait_for_capacity,
            "timeout_seconds": self.timeout_seconds,
            "device": device_name(self.device),
            "mode": self.mode,
            "dtype": agreed("dtype", self.dtype, "model_kwargs", from_model.get("dtype")),
            "num_threads": self.num_threads,
            "max_length": agreed("max_length", self.max_length, "tokenizer_kwargs", max_length),
            "batch_size": self.batch_size,
            "revision": agreed(
                "revision", self.revision, "model_kwargs", from_model.get("revision")
            ),
            "token": secret_value("token", self.token),
            "cache_dir": self.cache_dir,
        }

    def warm_up(self) -> None:
        """Fetch and load the model now, so that the first run does not pay for it."""
        self._holder.warm_up()

    async def warm_up_async(self) -> None:
        """Do what `warm_up` does, without blocking the event loop."""
        await self._holder.awarm_up()

    def close(self) -> None:
        """Release the model; the next run opens it again. May be called twice."""
        self._holder.close()

    async def close_async(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await self._holder.aclose()

    def to_dict(self) -> dict[str, Any]:
        """Serialise every constructor argument.

        Raises:
            InvalidRequestError: A client was given: it belongs to this process.
            ValueError: A secret holds its value, not the name of an environment variable.
        """
        clients = [name for name in ("client", "async_client") if getattr(self, name) is not None]
        if clients or has_client(getattr(self, "fallback", None)):
            msg = (
                f"a {type(self).__name__} with {' and '.join(clients) or 'a client in fallback'} "
                "cannot be serialised, for clients belong to this process; use base_url, addresses "
                "in fallback, or the parameters of the in-process model"
            )
            raise InvalidRequestError(msg)
        names = set(inspect.signature(self._constructor).parameters) - {"self"} - _NOT_SERIALISED
        return default_to_dict(
            self, **{name: _plain(getattr(self, name)) for name in sorted(names)}
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a component from what `to_dict` gave."""
        return default_from_dict(cls, data)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the values of secrets, also those in the holder, which is made anew."""
        left_out: dict[str, Any] = {"_holder": None}
        for name in ("api_key", "token"):
            if not isinstance(getattr(self, name), EnvVarSecret):
                left_out[name] = None
        if "on_rerank" in self.__dict__:  # a function need not be one that can be pickled
            left_out["on_rerank"] = None
        return self.__dict__ | left_out

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._holder = self._make_holder()

    def __copy__(self) -> Self:
        """Copy without `__getstate__`, so that secrets stay: a copy does not leave the process."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy deeply; clients and the hook are shared, as they stay the caller's."""
        memo = sharing_given(self, memo)
        twin = memo[id(self)] = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _plain(value: Any) -> Any:
    """Return the settings of a score cache, whose scores stay in this process."""
    return value.to_dict() if isinstance(value, ScoreCache) else value
