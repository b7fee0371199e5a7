"""An SIE server's address and how it is to be called: everything about a client but its sockets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

from sie_core.breaker import CircuitState
from sie_core.deadline import Deadline, check_timeout_seconds
from sie_core.errors import AuthenticationError, InputTooLongError, InvalidRequestError
from sie_core.long_documents import LongDocuments, check_confirmed
from sie_core.ranking import check_top_k
from sie_core.remote import codec, wire
from sie_core.remote.plan import Plan, Terms, attempts
from sie_core.remote.servers import Servers
from sie_core.remote.wire import Batch, Health, Ids, Part, PartScores, Request
from sie_core.settings import RemoteSettings
from sie_core.telemetry import otel
from sie_core.types import EncodeResult, Item, ScoreResult

_T = TypeVar("_T")

USER_AGENT = f"sie-core (SIE {wire.PROTOCOL_VERSION})"
_ENVELOPE_BYTES = 4096
_HEALTH_TIMEOUT_SECONDS = 10.0
_MIN_REDACTED_CHARS = 4


@dataclass(frozen=True, slots=True)
class Call(Generic[_T]):
    """One call: a plan for each of its requests, and how their answers become one."""

    plans: list[Plan[Any]]
    merge: Callable[[list[Any]], _T]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArguments:
    """What `score` and `encode` take alike; None means the client's own."""

    instruction: str | None
    options: Mapping[str, Any] | None
    gpu: str | None
    wait_for_capacity: bool | None
    timeout_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where calls go and on what terms. Builds each call's plans; sends nothing itself.

    Attributes:
        servers: The addresses.
        api_key: Sent to these only; in no repr, log, exception or pickle.
        has_lost_key: A key was given, but this is an unpickled copy, and `SIE_API_KEY` is not set.
        gpu: Machine profile, such as `l4` or `pool/l4`.
        pool: Pool of machines.
        options: Sent with every call; a call's own win.
        waits_for_capacity: Whether calls wait for a machine that is being started.
        body_format: How bodies travel.
        settings: Times and sizes.
    """

    servers: Servers
    api_key: str | None = field(default=None, repr=False)
    has_lost_key: bool = False
    gpu: str | None = None
    pool: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    waits_for_capacity: bool = False
    body_format: codec.BodyFormat = codec.MSGPACK
    settings: RemoteSettings = field(default_factory=RemoteSettings)

    def score(
        self, model: str, query: Item, items: Sequence[Item], arguments: CallArguments
    ) -> Call[ScoreResult]:
        """Plan a `score` call.

        Raises:
            InvalidRequestError: An argument is wrong; nothing will be sent. Or, once the reply is
                there: the server did not say that it handled long documents as was asked.
        """
        wire.check_item(query, "query")
        batch = Batch.of(items)
        fields: dict[str, object] = {"query": wire.item_fields(query)}
        if arguments.instruction is not None:
            _check_text("instruction", arguments.instruction)
            fields["instruction"] = arguments.instruction
        options = {**self.options, **wire.check_options(arguments.options)}
        LongDocuments.from_options(options)
        if options:
            fields["options"] = options
        path = wire.model_path("/v1/score", model)
        ids = batch.ids
        terms, headers = self._terms(arguments), self._headers(arguments)
        plans: list[Plan[PartScores]] = []
        for part, body in self._parts(fields, batch):
            sent_ids = ids.sent[part.start : part.stop]
            request = Request(
                method="POST",
                path=path,
                headers=headers,
                body=body,
                max_reply_bytes=wire.max_score_reply_bytes(sent_ids),
            )
            plans.append(attempts(request, _score_reader(ids, sent_ids), terms))
        query_id = query.get("id")

        def merge(parts: list[PartScores]) -> ScoreResult:
            result = wire.merge_scores(parts, model=model, query_id=query_id, shown_ids=ids.shown)
            check_confirmed(options, result)
            return result

        return Call(plans, merge)

    def encode(
        self,
        model: str,
        items: Item | Sequence[Item],
        arguments: CallArguments,
        *,
        output_types: Sequence[str] | None,
        output_dtype: str | None,
        is_query: bool | None,
    ) -> Call[EncodeResult | list[EncodeResult]]:
        """Plan an `encode` call; a single item gives a single result.

        Raises:
            InvalidRequestError: An argument is wrong; nothing will be sent.
        """
        is_single = isinstance(items, Mapping)
        batch = Batch.of([items] if is_single else items)
        params = self._encode_params(arguments, output_types, output_dtype, is_query)
        fields: dict[str, object] = {"params": params} if params else {}
        path = wire.model_path("/v1/encode", model)
        terms, headers = self._terms(arguments), self._headers(arguments)
        plans: list[Plan[list[EncodeResult]]] = []
        for part, body in self._parts(fields, batch):
            request = Request(
                method="POST",
                path=path,
                headers=headers,
                body=body,
                max_reply_bytes=self.settings.max_reply_bytes,
            )
            plans.append(attempts(request, _embedding_reader(batch.ids, part), terms))

        def merge(parts: list[list[EncodeResult]]) -> EncodeResult | list[EncodeResult]:
            results = [result for part in parts for result in part]
            return results[0] if is_single else results

        return Call(plans, merge)

    def list_models(self, timeout_seconds: float | None) -> Call[list[dict[str, Any]]]:
        """Plan a `list_models` call."""
        return self._get("/v1/models", wire.read_models, self._plain_terms(timeout_seconds))

    def get_model(self, model: str, timeout_seconds: float | None) -> Call[dict[str, Any]]:
        """Plan a `get_model` call."""
        path = wire.model_path("/v1/models", model)
        return self._get(path, wire.read_model, self._plain_terms(timeout_seconds))

    def health(self, timeout_seconds: float | None) -> Call[Health]:
        """Plan a `health` call: one attempt, and no long wait for it."""
        own = min(self.settings.timeout_seconds, _HEALTH_TIMEOUT_SECONDS)
        terms = replace(self._plain_terms(timeout_seconds or own), is_retried=False)
        return self._get("/healthz", wire.read_health, terms)

    @property
    def base_url(self) -> str:
        """The address; of several, with commas between."""
        return ",".join(self.servers.addresses)

    @property
    def source(self) -> str:
        """Whose scores its calls get, for a score cache: the address, and what goes with each call.

        The key is not in it, nor what decides only how a call travels.
        """
        own = {"options": self.options, "machines": wire.routing_headers(self.gpu, self.pool)}
        asked = {name: value for name, value in own.items() if value}
        if not asked:
            return self.base_url
        return f"{self.base_url} {json.dumps(asked, sort_keys=True, default=repr)}"

    def authorization(self) -> dict[str, str]:
        """Return the header that carries the key. Plans lead to this endpoint's origin only."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def redact(self, text: str) -> str:
        """Take the key out of a text: a proxy's error page may repeat the request."""
        if self.api_key is None or len(self.api_key) < _MIN_REDACTED_CHARS:
            return text
        return text.replace(self.api_key, "***")

    def without_key(self) -> Self:
        """Return what may be written down."""
        return replace(self, api_key=None, has_lost_key=self.api_key is not None)

    def with_key_from_environment(self) -> Self:
        """Return what a copy in another process uses: the key is read anew from its environment."""
        key = _check_api_key(os.environ.get("SIE_API_KEY") or None)
        return replace(self, api_key=key, has_lost_key=self.has_lost_key and key is None)

    def _get(self, path: str, read: Callable[[wire.Reply], _T], terms: Terms) -> Call[_T]:
        request = Request(
            method="GET",
            path=path,
            headers={"Accept": "application/json"},
            max_reply_bytes=self.settings.max_reply_bytes,
        )
        return Call([attempts(request, read, terms)], lambda answers: answers[0])

    def _plain_terms(self, timeout_seconds: float | None) -> Terms:
        if self.has_lost_key:
            msg = (
                "this client was unpickled, and pickles do not carry its api_key: set SIE_API_KEY "
                "in this process too"
            )
            raise AuthenticationError(msg)
        check_timeout_seconds(timeout_seconds)
        return Terms(
            servers=self.servers,
            deadline=Deadline.after(timeout_seconds or self.settings.timeout_seconds),
            connect_timeout_seconds=self.settings.connect_timeout_seconds,
            restart_seconds=self.settings.restart_seconds,
            redact=self.redact,
        )

    def _terms(self, arguments: CallArguments) -> Terms:
        waits = arguments.wait_for_capacity
        return replace(
            self._plain_terms(arguments.timeout_seconds),
            waits_for_capacity=self.waits_for_capacity if waits is None else waits,
            provision_seconds=self.settings.provision_timeout_seconds,
        )

    def _headers(self, arguments: CallArguments) -> dict[str, str]:
        gpu = self.gpu if arguments.gpu is None else arguments.gpu
        headers = wire.body_headers(self.body_format) | wire.routing_headers(gpu, self.pool)
        otel.inject(headers)  # so that the server's spans belong to the caller's
        return headers

    def _encode_params(
        self,
        arguments: CallArguments,
        output_types: Sequence[str] | None,
        output_dtype: str | None,
        is_query: bool | None,
    ) -> dict[str, Any]:
        _check_text("instruction", arguments.instruction)
        _check_text("output_dtype", output_dtype)
        if isinstance(output_types, str):
            msg = f"output_types must be a list such as ['dense'], but got {output_types!r}"
            raise InvalidRequestError(msg)
        options = {**self.options, **wire.check_options(arguments.options)}
        if is_query is not None:
            options["is_query"] = is_query
        params = {
            "output_types": None if output_types is None else list(output_types),
            "instruction": arguments.instruction,
            "output_dtype": output_dtype,
            "options": options or None,
        }
        return {name: value for name, value in params.items() if value is not None}

    def _parts(
        self, fields: Mapping[str, object], batch: Batch
    ) -> list[tuple[Part, Callable[[], bytes]]]:
        """Encode a call: what each of its requests holds, and what makes the request's body."""
        settings = self.settings
        if 0 < len(batch.items) <= settings.max_items:
            whole = wire.encode_whole(self.body_format, fields, batch)
            # A whole that is no longer than one item may be has none that is too long.
            limit = min(settings.max_request_bytes, settings.max_item_bytes)
            if whole is not None and len(whole) <= limit:
                return [(Part(0, len(batch.items), []), lambda: whole)]
        encoder = self.body_format.encoder()
        encoded = [
            (name, self._encode_field(encoder, name, value)) for name, value in fields.items()
        ]
        parts = self._split(encoder, batch, sum(len(value) for _, value in encoded))
        return [(part, self._body(part, encoded)) for part in parts]

    def _encode_field(self, encoder: Callable[[object], bytes], name: str, value: Any) -> bytes:
        """Encode what stands beside the items, naming it as the caller does."""
        if name == "query":
            return wire.encode_item(encoder, value, name, self.settings.max_item_bytes)
        return codec.encode(encoder, value, "options" if name == "params" else name)

    def _split(
        self, encoder: Callable[[object], bytes], batch: Batch, num_field_bytes: int
    ) -> list[Part]:
        """Encode the items, and cut them into what one request holds beside the other fields."""
        settings = self.settings
        taken = num_field_bytes + _ENVELOPE_BYTES
        left = settings.max_request_bytes - taken
        encoded = wire.encode_items(
            encoder, batch.items, batch.ids.sent, max_item_bytes=settings.max_item_bytes
        )
        largest = max(map(len, encoded), default=0)
        if largest >= left:
            msg = (
                f"an item of {largest} bytes does not fit into a request of "
                f"{settings.max_request_bytes} bytes beside query and options ({taken} bytes)"
            )
            raise InputTooLongError(msg)
        return wire.split(
            encoded,
            max_items=settings.max_items,
            max_bytes=left,
            max_concurrency=settings.max_concurrency,
        )

    def _body(self, part: Part, fields: Sequence[tuple[str, bytes]]) -> Callable[[], bytes]:
        """Return what writes a part's body: as late as possible, since it repeats the items."""
        return lambda: self.body_format.body(fields, part.items, part.stop - part.start)


def _score_reader(ids: Ids, sent_ids: Sequence[str]) -> Callable[[wire.Reply], PartScores]:
    are_shown = ids.sent is ids.shown
    return lambda reply: wire.read_scores(reply, sent_ids, are_shown=are_shown)


def _embedding_reader(ids: Ids, part: Part) -> Callable[[wire.Reply], list[EncodeResult]]:
    return lambda reply: wire.read_embeddings(reply, ids, part)


class EndpointClient:
    """What `SIEClient` and `SIEAsyncClient` share: their arguments and how they are copied."""

    _endpoint: Endpoint

    server_version: str | None = None
    """The version that the server's last answer stated; None before the first."""

    def __init__(
        self,
        base_url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float | None = None,
        timeout_s: float | None = None,
        connect_timeout_seconds: float | None = None,
        gpu: str | None = None,
        pool: str | None = None,
        options: Mapping[str, Any] | None = None,
        wait_for_capacity: bool = False,
        provision_timeout_seconds: float | None = None,
        max_concurrency: int | None = None,
        content_format: codec.ContentFormat = "msgpack",
        settings: RemoteSettings | None = None,
    ) -> None:
        if timeout_s is not None and timeout_seconds is not None:
            msg = "timeout_s and timeout_seconds are the same thing: give one of them"
            raise InvalidRequestError(msg)
        check_timeout_seconds(timeout_s, name="timeout_s")
        check_timeout_seconds(timeout_seconds)
        check_timeout_seconds(connect_timeout_seconds, name="connect_timeout_seconds")
        check_timeout_seconds(provision_timeout_seconds, name="provision_timeout_seconds")
        check_top_k(max_concurrency, name="max_concurrency")
        wire.routing_headers(gpu, pool)
        changes = {
            "timeout_seconds": timeout_s if timeout_seconds is None else timeout_seconds,
            "connect_timeout_seconds": connect_timeout_seconds,
            "provision_timeout_seconds": provision_timeout_seconds,
            "max_concurrency": max_concurrency,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        self._endpoint = Endpoint(
            servers=Servers(_to_addresses(base_url)),
            api_key=_check_api_key(api_key or os.environ.get("SIE_API_KEY") or None),
            gpu=gpu,
            pool=pool,
            options=wire.check_options(options),
            waits_for_capacity=wait_for_capacity,
            body_format=codec.body_format(content_format),
            settings=replace(settings or RemoteSettings(), **given),  # type: ignore[arg-type]
        )

    @property
    def base_url(self) -> str:
        """The server's address; of several, with commas between."""
        return self._endpoint.base_url

    @property
    def server_states(self) -> dict[str, CircuitState]:
        """Whether each server is asked (`closed`), ejected (`open`) or on trial (`half-open`)."""
        return self._endpoint.servers.states

    @property
    def timeout_seconds(self) -> float:
        """The bound on one whole call."""
        return self._endpoint.settings.timeout_seconds

    def source_of(self, model: str, lora: str | None = None) -> str:
        """Say whose scores calls would get, for a score cache; see `LocalClient.source_of`.

        That is the address, and what this client asks for by itself: nobody can see from here what
        weights a server has.
        """
        del model, lora
        return self._endpoint.source

    def _note_version(self, reply: wire.Reply) -> None:
        self.server_version = reply.headers.get("x-sie-server-version", self.server_version)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r}, timeout_seconds={self.timeout_seconds:g})"


def _to_addresses(base_url: object) -> list[str]:
    """Read one address, several in one string with commas between, or a list of them."""
    if base_url is None or base_url == "":
        base_url = os.environ.get("SIE_BASE_URL") or None
    given: Any = base_url.split(",") if isinstance(base_url, str) else base_url
    is_many = isinstance(given, Sequence) and not isinstance(given, bytes)
    addresses = [_check_address(one) for one in (given if is_many else [given])]
    if not addresses or len(set(addresses)) < len(addresses):
        msg = f"base_url must be one address, or several different ones, but got {base_url!r}"
        raise InvalidRequestError(msg)
    return addresses


def _check_address(base_url: object) -> str:
    if base_url is None:
        msg = "base_url is missing: pass the server's address, or set SIE_BASE_URL"
        raise InvalidRequestError(msg)
    if not isinstance(base_url, str):
        msg = f"base_url must be a string, but got {type(base_url).__name__}"
        raise InvalidRequestError(msg)
    try:
        parts = urlsplit(base_url.strip())
        has_port = parts.port is None or parts.port > 0
    except ValueError as exc:
        msg = "base_url must be an address such as 'http://localhost:8080', but cannot be read"
        raise InvalidRequestError(msg) from exc
    if parts.username is not None or parts.password is not None:
        msg = "base_url must not hold credentials: pass api_key, or set SIE_API_KEY"
        raise InvalidRequestError(msg)
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port:
        msg = f"base_url must be like 'http://localhost:8080', but got {base_url!r}"
        raise InvalidRequestError(msg)
    if parts.query or parts.fragment or not base_url.strip().isprintable():
        msg = f"base_url must end with the path, but got {base_url!r}"
        raise InvalidRequestError(msg)
    return base_url.strip().rstrip("/")


def _check_api_key(api_key: object) -> str | None:
    """Refuse a key that cannot stand in a header, without showing it."""
    if api_key is None:
        return None
    is_text = isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()
    if not isinstance(api_key, str) or not is_text or not api_key.strip():
        msg = "api_key must be a string of printable ASCII characters (the value is not shown)"
        raise InvalidRequestError(msg)
    return api_key.strip()


def _check_text(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        msg = f"{name} must be a string or None, but got {type(value).__name__}"
        raise InvalidRequestError(msg)
