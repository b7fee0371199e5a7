"""Requests and replies as values: what is sent survives, and nothing that arrives is trusted."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sie_core.errors import InputTooLongError, InvalidRequestError, InvalidResponseError
from sie_core.ranking import rank
from sie_core.remote import codec, wire
from sie_core.remote.codec import JSON, MSGPACK, BodyFormat, decode, excerpt, to_array
from sie_core.remote.wire import Batch, Ids, Part, PartScores, Reply, merge_scores, split
from sie_core.types import Item, Usage

FORMATS = st.sampled_from([MSGPACK, JSON])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
IDS = st.lists(st.none() | st.sampled_from(["a", "b", "item-0", "item-1", "doc"]), max_size=8)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def reply_of(body: bytes, content_type: str = "application/msgpack") -> Reply:
    """Make a reply out of a body."""
    return Reply(status_code=200, headers={"content-type": content_type}, body=body)


def scores_reply(scores: list[Any], **more: Any) -> Reply:
    """Make a score reply."""
    return reply_of(msgpack.packb({"model": "m", "scores": scores, **more}))


@given(VALUES, FORMATS)
def test_a_value_survives_the_way_there_and_back(value: Any, body_format: BodyFormat) -> None:
    """What is encoded decodes to itself, in both formats."""
    body = codec.encode(body_format.encoder(), value, "value")
    assert decode(body, body_format.content_type) == value


@given(st.lists(VALUES, max_size=5), st.dictionaries(TEXTS, VALUES, max_size=3), FORMATS)
def test_a_body_is_the_sum_of_its_values(
    items: list[Any], fields: dict[str, Any], body_format: BodyFormat
) -> None:
    """Values encoded one by one make the same body as the whole would."""
    encoder = body_format.encoder()
    encoded = [(name, encoder(value)) for name, value in fields.items() if name != "items"]
    body = body_format.body(encoded, [encoder(item) for item in items], len(items))
    expected = {**{name: fields[name] for name, _ in encoded}, "items": items}
    assert decode(body, body_format.content_type) == expected


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", "|i1", "|u1", "<i4"])
def test_an_array_survives_as_a_map_with_bytes_keys(dtype: str) -> None:
    """Arrays of numpy travel in msgpack as the server's own library writes them."""
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    body = codec.encode(MSGPACK.encoder(), array, "array")
    found = decode(body, "application/msgpack")
    assert found == {
        b"nd": True,
        b"type": dtype,
        b"kind": b"",
        b"shape": [2, 3],
        b"data": array.tobytes(),
    }
    back = to_array(found, "it")
    assert back.dtype == array.dtype
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)
    as_list = decode(codec.encode(JSON.encoder(), array, "array"), "application/json")
    np.testing.assert_array_equal(to_array(as_list, "it"), array)


@pytest.mark.parametrize(
    "values",
    [
        None,
        "text",
        {},
        {b"type": "<f4", b"shape": [2], b"data": b"\0" * 4},
        {b"type": "<f4", b"shape": [-1], b"data": b"\0" * 4},
        {b"type": "<f4", b"shape": [1, 1, 1, 1, 1], b"data": b"\0" * 4},
        {b"type": "<f4", b"shape": [2**62, 4], b"data": b"\0" * 4},
        {b"type": "O", b"shape": [1], b"data": b"\0" * 8},
        {b"type": "V8", b"shape": [1], b"data": b"\0" * 8},
        {b"type": "<f4", b"shape": [True], b"data": b"\0" * 4},
        {b"type": "<f4", b"shape": [1], b"data": "\0\0\0\0"},
        {b"type": "<f4", b"shape": [1], b"data": np.float32(math.nan).tobytes()},
        [1.0, "a"],
        [[1.0], [1.0, 2.0]],
        [1.0, math.inf],
        [None],
        [{}],
    ],
)
def test_what_is_no_array_is_refused(values: Any) -> None:
    """A contradiction between type, shape and data, or a number that is not finite, is an error."""
    with pytest.raises(InvalidResponseError, match="it"):
        to_array(values, "it")


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(["application/msgpack", "application/json"]))
def test_garbage_is_never_anything_but_an_invalid_response(body: bytes, content_type: str) -> None:
    """Whatever bytes arrive, reading them as scores or embeddings raises InvalidResponseError."""
    reply = reply_of(body, content_type)
    ids = Ids.of([Item(id="a", text="x")])
    for read in (
        lambda: wire.read_scores(reply, ["a"]),
        lambda: wire.read_embeddings(reply, ids, Part(0, 1, [b""])),
        lambda: wire.read_models(reply),
        lambda: wire.read_model(reply),
    ):
        with pytest.raises(InvalidResponseError):
            read()


@settings(max_examples=300)
@given(VALUES, st.data())
def test_any_well_formed_value_is_an_invalid_response(value: Any, data: st.DataObject) -> None:
    """A map of the right names with the wrong contents raises InvalidResponseError too."""
    name = data.draw(st.sampled_from(["scores", "items", "models", "name"]))
    reply = reply_of(msgpack.packb({"model": "m", name: value}))
    ids = Ids.of([Item(id="a", text="x")])
    with pytest.raises(InvalidResponseError):
        wire.read_scores(reply, ["a"])
    with pytest.raises(InvalidResponseError):
        wire.read_embeddings(reply, ids, Part(0, 1, [b""]))


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_reply_is_right_or_refused(data: st.DataObject) -> None:
    """A reply with bytes changed gives finite scores for all ids, or InvalidResponseError."""
    scores = [{"item_id": f"item-{i}", "score": -float(i), "rank": i} for i in range(4)]
    body = bytearray(msgpack.packb({"model": "m", "scores": scores}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for damaged in (bytes(body), bytes(body[:cut])):
        try:
            part = wire.read_scores(reply_of(damaged), [f"item-{i}" for i in range(4)])
        except InvalidResponseError:
            continue
        assert len(part.scores) == 4
        assert all(math.isfinite(score) for score in part.scores)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([], "no score for 2 of 2"),
        ([{"item_id": "a", "score": 1.0}], "no score for 1 of 2"),
        ([{"item_id": "a", "score": 1.0}] * 2, "twice"),
        ([{"item_id": "z", "score": 1.0}], "not sent"),
        ([{"item_id": ["a"], "score": 1.0}], "cannot be read"),
        ([{"item_id": "a", "score": math.nan}], "not a finite number"),
        ([{"item_id": "a", "score": None}], "not a finite number"),
        ([{"item_id": "a", "score": "1"}], "not a finite number"),
        ([{"item_id": "a", "score": True}], "not a finite number"),
        ([{"item_id": "a"}], "not a finite number"),
        ([{}], "not sent"),
        ("ab", "must be a list"),
        ([1], "must be a list"),
        (None, "must be a list"),
    ],
)
def test_every_id_is_scored_exactly_once_and_finitely(scores: Any, reason: str) -> None:
    """A score that is missing, doubled, unknown or not finite is an error that says which."""
    with pytest.raises(InvalidResponseError, match=reason):
        wire.read_scores(scores_reply(scores), ["a", "b"])


def test_an_integer_beyond_floats_is_refused() -> None:
    """JSON's integers have no limit; a score of 10^400 is no score."""
    body = json.dumps({"model": "m", "scores": [{"item_id": "a", "score": 10**400}]}).encode()
    with pytest.raises(InvalidResponseError):
        wire.read_scores(reply_of(body, "application/json"), ["a"])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\x91" * 100_000, "application/msgpack"),
        (b"[" * 100_000, "application/json"),
        (b"\xdd\xff\xff\xff\xff" * 1000, "application/msgpack"),
        (b"\xdf\xff\xff\xff\xff" * 1000, "application/msgpack"),
        (b"\xc6\xff\xff\xff\xff", "application/msgpack"),
        (msgpack.packb([None] * 100_000), "application/msgpack"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "application/msgpack"),
        (msgpack.packb({1: 2}), "application/msgpack"),
        (b"9" * 10_000, "application/json"),
        (b"", "application/json"),
        (b"", "application/msgpack"),
        (b"<html>Bad gateway</html>", "text/html"),
        (b"{}", ""),
        (b"{}{}", "application/json"),
        (b"\x80\x80", "application/msgpack"),
        (b"\xff\xfe", "application/json"),
    ],
)
def test_decoding_is_bounded(body: bytes, content_type: str) -> None:
    """Depth, claimed lengths, unknown types and trailing bytes end in one clear error."""
    with pytest.raises(InvalidResponseError):
        decode(body, content_type)


def test_a_compressed_body_is_refused() -> None:
    """Compression was not asked for, and could hide any amount of bytes."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with pytest.raises(InvalidResponseError, match="compressed"):
        wire.read_models(Reply(status_code=200, headers=headers, body=b"{}"))


@given(IDS)
def test_ids_that_travel_are_unique_and_lead_back(given_ids: list[str | None]) -> None:
    """The caller's ids travel only where all are given and unique; each shows at its item."""
    items = [Item(text="x") if own is None else Item(id=own, text="x") for own in given_ids]
    ids = Ids.of(items)
    assert len(set(ids.sent)) == len(items)
    assert ids.shown == [f"item-{i}" if own is None else own for i, own in enumerate(given_ids)]
    if None not in given_ids and len(set(given_ids)) == len(given_ids):
        assert ids.sent == given_ids
    else:
        assert ids.sent == [f"item-{i}" for i in range(len(items))]


ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.none() | st.sampled_from(["a", "b", "item-0", "doc"]),
        "text": st.none() | TEXTS,
        "metadata": st.dictionaries(TEXTS, VALUES, max_size=2),
    },
)


@given(st.lists(ITEMS | st.fixed_dictionaries({"text": TEXTS}), max_size=5), FORMATS)
def test_a_body_in_one_go_is_the_body_in_pieces(items: list[Any], body_format: BodyFormat) -> None:
    """Both ways of writing a body send the same items under the same ids, and change none."""
    before = copy.deepcopy(items)
    batch = Batch.of(items)
    assert batch.ids == Ids.of(items)
    whole = wire.encode_whole(body_format, {"query": {"text": "q"}}, batch)
    encoder = body_format.encoder()
    pieces = wire.encode_items(encoder, items, batch.ids.sent, max_item_bytes=10**6)
    body = body_format.body([("query", encoder({"text": "q"}))], pieces, len(pieces))
    assert whole is not None
    assert decode(whole, body_format.content_type) == decode(body, body_format.content_type)
    assert items == before


@pytest.mark.parametrize(
    "items",
    [
        "ab",
        {"text": "a"},
        {"a", "b"},
        [{"text": "a"}, "b"],
        [{"text": "a"}, {"text": 1}],
        [{"text": "a"}, {"text": b"b"}],
        [{"id": 1, "text": "a"}],
        ({"text": "a"}, None),
    ],
)
def test_what_is_no_item_is_refused(items: Any) -> None:
    """Among items that are well, too."""
    with pytest.raises(InvalidRequestError, match="items"):
        Batch.of(items)


def test_an_empty_text_and_none_may_be_items() -> None:
    """They are strings or missing, as any other."""
    items = [Item(text=""), Item(), {"text": None}, Item(id="a")]
    assert Batch.of(items).ids.given == [None, None, None, "a"]


@given(
    st.lists(st.binary(min_size=1, max_size=30), max_size=60),
    st.integers(1, 20),
    st.integers(40, 200),
)
def test_parts_hold_all_items_in_order_within_the_limits(
    items: list[bytes], max_items: int, max_bytes: int
) -> None:
    """Splitting loses, doubles and reorders nothing, and no part is over a limit."""
    parts = split(items, max_items=max_items, max_bytes=max_bytes)
    assert [item for part in parts for item in part.items] == items
    start = 0
    for part in parts:
        assert part.start == start
        start = part.stop
        assert 1 <= len(part.items) <= max_items
        assert sum(map(len, part.items)) <= max_bytes


@pytest.mark.parametrize(
    ("num_items", "max_concurrency", "sizes"),
    [(512, 1, [512]), (513, 1, [257, 256]), (512, 2, [512]), (513, 2, [171] * 3), (0, 2, [])],
)
def test_parts_are_few_and_alike(num_items: int, max_concurrency: int, sizes: list[int]) -> None:
    """Parts are of nearly equal length, and those under way fit into one request's limit."""
    parts = split(
        [b"x"] * num_items, max_items=512, max_bytes=10**9, max_concurrency=max_concurrency
    )
    assert [len(part.items) for part in parts] == sizes


@given(st.lists(st.lists(FINITE, min_size=1, max_size=6), min_size=1, max_size=5))
def test_merged_parts_rank_as_one(parts: list[list[float]]) -> None:
    """Scores from several parts have the order and ranks that one part would have given them."""
    scores = [score for part in parts for score in part]
    shown = [f"item-{i}" for i in range(len(scores))]
    merged = merge_scores(
        [PartScores(part, "m", Usage(input_tokens=len(part)), None) for part in parts],
        model="m",
        query_id="q",
        shown_ids=shown,
    )
    assert [entry["rank"] for entry in merged["scores"]] == list(range(len(scores)))
    expected = [(shown[entry.index], entry.score) for entry in rank(scores)]
    assert [(entry["item_id"], entry["score"]) for entry in merged["scores"]] == expected
    assert merged["usage"] == {"input_tokens": len(scores)}
    assert merged["query_id"] == "q"


BODY_TIMES = {
    "total_ms": 7.5,
    "queue_ms": 3,
    "tokenization_ms": None,
    "inference_ms": 2.0,
    "postprocessing_ms": None,
}


@pytest.mark.parametrize(
    ("said", "headers", "expected"),
    [
        ({"timing": BODY_TIMES}, {}, {"total_ms": 7.5, "queue_ms": 3.0, "inference_ms": 2.0}),
        ({}, {"x-total-time": "7.66"}, {"total_ms": 7.66}),
        (
            {"timing": {"total_ms": 7.658, "tokenization_ms": "x"}},
            {"x-total-time": "7.66", "x-tokenization-time": "0.02"},
            {"total_ms": 7.658, "tokenization_ms": 0.02},
        ),
        ({"timing": [1]}, {"x-queue-time": "soon", "x-inference-time": "-1"}, {}),
        ({"timing": {"total_ms": True, "queue_ms": 10**400}}, {"x-queue-time": "nan"}, {}),
        ({}, {}, {}),
    ],
)
def test_a_reply_says_where_its_time_went(
    said: dict[str, Any], headers: dict[str, str], expected: dict[str, float]
) -> None:
    """Times are read from the body or else the headers; what is no time is left out."""
    reply = reply_of(msgpack.packb({}))
    timing = wire.read_timing(replace(reply, headers=headers), said)
    assert timing == expected


def test_parts_that_ran_side_by_side_have_the_slowest_ones_times() -> None:
    """A call in several requests took, in each respect, as long as the slowest of them."""
    parts = [
        PartScores([1.0], "m", {}, None, None, {"total_ms": 9.0, "queue_ms": 1.0}),
        PartScores([2.0], "m", {}, None, None, {"total_ms": 5.0, "queue_ms": 4.0}),
        PartScores([3.0], "m", {}, None),
    ]
    merged = merge_scores(parts, model="m", query_id=None, shown_ids=["a", "b", "c"])
    assert merged["timing"] == {"total_ms": 9.0, "queue_ms": 4.0}


@pytest.mark.parametrize("named", [["x"], "a", [["a"]], 3, [None]])
def test_what_lost_its_end_must_have_been_sent(named: Any) -> None:
    """A list of ids that were sent, or the reply is not to be trusted."""
    entries = [{"item_id": name, "score": 1.0} for name in ("a", "b")]
    reply = scores_reply(entries, truncated=named)
    with pytest.raises(InvalidResponseError, match="'truncated' must hold ids that were sent"):
        wire.read_scores(reply, ["a", "b"])


def test_equal_scores_keep_the_items_order() -> None:
    """Ties stay in retrieval order, whatever order the server gave them."""
    reply = scores_reply([{"item_id": name, "score": 1.0} for name in ("c", "a", "b")])
    part = wire.read_scores(reply, ["a", "b", "c"])
    merged = merge_scores([part], model="m", query_id=None, shown_ids=["a", "b", "c"])
    assert [entry["item_id"] for entry in merged["scores"]] == ["a", "b", "c"]


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    st.sampled_from([{}, {"rank": 7}, {"rank": None, "more": "x"}, {"other": 1}]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_result_is_the_same_whether_its_entries_are_the_replys_or_new(
    scores: list[float], more: dict[str, Any], are_floats: bool, random: Any
) -> None:
    """An entry holds the id, the score and our own rank, whatever the server's held."""
    ids = [f"item-{i}" for i in range(len(scores))]
    sent = [float(score) if are_floats else round(score) for score in scores]
    entries = [
        {"item_id": item_id, "score": score, **more}
        for item_id, score in zip(ids, sent, strict=True)
    ]
    random.shuffle(entries)
    results = []
    for are_shown in (False, True):
        part = wire.read_scores(scores_reply(entries), ids, are_shown=are_shown)
        assert part.scores == sent
        results.append(merge_scores([part], model="m", query_id=None, shown_ids=ids))
    assert results[0] == results[1]
    for entry in results[1]["scores"]:
        assert entry.keys() == {"item_id", "score", "rank"}
        assert type(entry["score"]) is float


def test_scores_whose_sum_is_beyond_floats_are_scores() -> None:
    """Each is finite, which is what counts."""
    entries = [{"item_id": name, "score": 1.7e308, "rank": 0} for name in ("a", "b")]
    assert wire.read_scores(scores_reply(entries), ["a", "b"]).scores == [1.7e308, 1.7e308]


@pytest.mark.parametrize("scores", [[math.inf, -math.inf], [math.inf, 0.0], [0.0, math.nan]])
def test_scores_that_are_not_finite_do_not_hide_among_others(scores: list[float]) -> None:
    """Nor behind each other."""
    entries = [{"item_id": n, "score": s, "rank": 0} for n, s in zip("ab", scores, strict=True)]
    with pytest.raises(InvalidResponseError, match="not a finite number"):
        wire.read_scores(scores_reply(entries), ["a", "b"])


def test_embeddings_are_matched_by_id() -> None:
    """Embeddings out of order come back in the order asked for."""
    ids = Ids.of([Item(text="x"), Item(text="y")])
    body = msgpack.packb(
        {
            "items": [
                {"id": "item-1", "dense": {"dims": 1, "dtype": "float32", "values": [2.0]}},
                {"id": "item-0", "dense": {"dims": 1, "dtype": "float32", "values": [1.0]}},
            ]
        }
    )
    results = wire.read_embeddings(reply_of(body), ids, Part(0, 2, [b"", b""]))
    assert [float(result["dense"][0]) for result in results] == [1.0, 2.0]
    assert all("id" not in result for result in results)


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{"id": "a", "dense": {"values": [1.0]}}] * 2,
        [{"id": "z", "dense": {"values": [1.0]}}],
        [{"id": "a"}],
        [{"id": "a", "dense": [1.0]}],
        [{"id": "a", "dense": {"dims": 2, "values": [1.0]}}],
        [{"id": "a", "dense": {"values": [[1.0]]}}],
        [{"id": "a", "multivector": {"values": [1.0]}}],
        [{"id": "a", "multivector": {"num_tokens": 2, "values": [[1.0]]}}],
        [{"id": "a", "sparse": {"indices": [1, 2], "values": [1.0]}}],
        [{"id": "a", "sparse": [1.0]}],
        [{"id": "a", "dense": {"values": [math.nan]}}],
    ],
)
def test_embeddings_are_not_trusted(items: list[Any]) -> None:
    """Embeddings that are missing, doubled, unknown, misshapen or not finite are an error."""
    reply = reply_of(msgpack.packb({"items": items}))
    with pytest.raises(InvalidResponseError):
        wire.read_embeddings(reply, Ids.of([Item(id="a", text="x")]), Part(0, 1, [b""]))


def test_sparse_embeddings_are_read() -> None:
    """A sparse embedding is a pair of arrays."""
    item = {"sparse": {"dims": 9, "dtype": "float32", "indices": [1, 5], "values": [0.5, 2.0]}}
    reply = reply_of(msgpack.packb({"items": [item]}))
    (result,) = wire.read_embeddings(reply, Ids.of([Item(text="x")]), Part(0, 1, [b""]))
    assert result["sparse"]["indices"].tolist() == [1, 5]
    assert result["sparse"]["values"].tolist() == [0.5, 2.0]


@pytest.mark.parametrize("char", ["a", "ü", "木"])
def test_an_item_over_the_limit_is_refused_by_name(char: str) -> None:
    """The limit counts UTF-8 bytes, as the server does: one byte over is refused."""
    limit = 3000
    length = limit // len(char.encode())

    def encode(text: str) -> list[bytes]:
        items = [Item(text="a"), Item(text=text)]
        return wire.encode_items(MSGPACK.encoder(), items, ["0", "1"], max_item_bytes=limit)

    assert len(encode(char * length)) == 2
    with pytest.raises(InputTooLongError, match=r"items\[1\] holds 300[1-9] bytes"):
        encode(char * (length + 1))


def test_metadata_counts_towards_the_limit() -> None:
    """The server measures text and metadata together."""
    item = Item(text="a" * 60, metadata={"note": "b" * 60})
    with pytest.raises(InputTooLongError, match="metadata"):
        wire.encode_item(MSGPACK.encoder(), item, "query", 100)


@pytest.mark.parametrize(
    ("gpu", "pool", "headers"),
    [
        (None, None, {}),
        ("l4", None, {"X-SIE-MACHINE-PROFILE": "l4"}),
        ("l4", "p", {"X-SIE-MACHINE-PROFILE": "l4", "X-SIE-Pool": "p"}),
        ("p/l4", None, {"X-SIE-MACHINE-PROFILE": "l4", "X-SIE-Pool": "p"}),
        ("p/l4", "other", {"X-SIE-MACHINE-PROFILE": "l4", "X-SIE-Pool": "p"}),
        ("p/", None, {"X-SIE-Pool": "p"}),
        (None, "p", {"X-SIE-Pool": "p"}),
    ],
)
def test_gpu_may_name_its_pool(gpu: str | None, pool: str | None, headers: dict[str, str]) -> None:
    """`pool/l4` is split into the two headers."""
    assert wire.routing_headers(gpu, pool) == headers


@pytest.mark.parametrize("gpu", ["l4\r\nX-Evil: 1", "ü", "", " ", 4])
def test_a_gpu_that_cannot_be_a_header_is_refused(gpu: Any) -> None:
    """Nothing can be smuggled into the request's head."""
    with pytest.raises(InvalidRequestError, match="gpu"):
        wire.routing_headers(gpu, None)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("BAAI/bge-m3", "/p/BAAI/bge-m3"),
        ("sie-fake:small", "/p/sie-fake:small"),
        ("a b?c#d%", "/p/a%20b%3Fc%23d%25"),
        ("ü", "/p/%C3%BC"),
    ],
)
def test_a_models_name_is_quoted(model: str, path: str) -> None:
    """Slashes stay; what would end the path does not."""
    assert wire.model_path("/p", model) == path


@given(st.binary(max_size=3000))
def test_an_excerpt_is_one_short_printable_line(body: bytes) -> None:
    """Any body can be shown in an error message."""
    line = excerpt(body)
    assert len(line) <= 161
    assert line.isprintable()


@pytest.mark.parametrize("item", [{"multivector": [[0.5]]}, {"text": "a", "multivector": [[0.5]]}])
def test_vectors_are_not_sent(item: dict[str, Any]) -> None:
    """The protocol has no field for them: a server would ignore them and miss the text."""
    with pytest.raises(InvalidRequestError, match=r"items\[1\] holds a multivector"):
        wire.check_items([{"text": "a"}, item])
