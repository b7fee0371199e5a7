"""What a server is told: which models it serves, and its limits. From flags and a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sie_core.errors import InvalidRequestError

_MIB = 1024 * 1024


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller gets by `options={"profile": …}`.

    Attributes:
        instruction: Put before the query, unless the caller gives another.
        options: Used where the caller does not give the same: `max_length`, `score_space`, `lora`.
    """

    instruction: str | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model that callers may use.

    Attributes:
        name: As callers name it.
        source: The model's name on the hub, or a folder; None means that it is the name.
        preload: Whether it is loaded at the start; others are at their first use.
        profiles: What `options={"profile": …}` may name.
        loras: The adapters that `options={"lora": …}` may name: each a folder, or a name on the
            hub.
    """

    name: str
    source: str | None = None
    preload: bool = True
    profiles: dict[str, Profile] = msgspec.field(default_factory=dict)
    loras: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where its weights come from."""
        return self.source or self.name

    def with_loras(self, loras: Mapping[str, str]) -> ModelSettings:
        """Return the same with more adapters; its own win."""
        return msgspec.structs.replace(self, loras={**loras, **self.loras})


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's settings. The limits on items are those of sie-server 0.10.

    Attributes:
        models: What callers may use.
        allow_any_model: Let callers name any model of the hub, which the server then downloads.
        wait_for_load_seconds: How long a call waits for its model to load, before it is told to
            come back.
        retry_failed_load_seconds: How long a model that could not be loaded is left alone.
        max_items: Items per request.
        max_body_bytes: Bytes of a request's body.
        max_item_bytes: Text and metadata of one item.
        max_requests: Requests in progress; more are told to come back.
        max_requests_bytes: Bytes of their bodies together.
        max_queued_tokens: Tokens that may wait for one model; more are told to come back.
        head_timeout_seconds: How long the head of a request may take to arrive.
        body_timeout_seconds: How long a body may take to arrive.
        request_timeout_seconds: How long a request may take, once its body is there.
        drain_seconds: How long requests in progress may still take when the server is stopped.
        allow_reload: Let anyone who may use the server reload models.
        api_key_file: Lines of `name:sha256-hex`: who may call; None lets everyone.
        rate_limits: What one caller may ask for, such as `600/minute` or `100000 tokens/hour`.
        open_metrics: Let everyone read `/metrics`, though there are keys.
        allowed_origins: Sites whose pages may call, such as `https://search.example.org`.
        tls_cert: Certificate of the server, in PEM; None means no TLS.
        tls_key: Its private key; None if the certificate's file holds it.
        tls_client_ca: Authorities; callers then need a certificate of theirs.
        max_connections: Open at a time; more are closed at once.
    """

    models: tuple[ModelSettings, ...] = ()
    allow_any_model: bool = False
    wait_for_load_seconds: float = 0.0
    retry_failed_load_seconds: float = 30.0
    max_items: int = 512
    max_body_bytes: int = 34 * _MIB
    max_item_bytes: int = 2 * _MIB
    max_requests: int = 1024
    max_requests_bytes: int = 512 * _MIB
    max_queued_tokens: int = 2**20
    head_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 60.0
    request_timeout_seconds: float = 300.0
    drain_seconds: float = 30.0
    allow_reload: bool = False
    api_key_file: str | None = None
    rate_limits: tuple[str, ...] = ()
    open_metrics: bool = False
    allowed_origins: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    max_connections: int = 1000

    def __post_init__(self) -> None:
        """Check what the types do not say.

        Raises:
            InvalidRequestError: A value is wrong.
        """
        names = [model.name for model in self.models]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            msg = f"the model {doubled[0]!r} is given twice; give each name once"
            raise InvalidRequestError(msg)
        for name in self.__struct_fields__:
            value = getattr(self, name)
            is_time = name.endswith("_seconds")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and value < (0 if is_time else 1):
                msg = f"{name} must be at least {0 if is_time else 1}, but got {value}"
                raise InvalidRequestError(msg)


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a TOML file sets, by the names of `ServerSettings`.

    Raises:
        InvalidRequestError: It cannot be read, or a setting is unknown or of the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = msgspec.convert(content, ServerSettings)
    except OSError as exc:
        msg = f"the configuration {path} could not be read: {exc.strerror}"
        raise InvalidRequestError(msg) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as exc:
        msg = f"the configuration {path} is wrong: {exc}"
        raise InvalidRequestError(msg) from exc
    return {name: getattr(settings, name) for name in content}
