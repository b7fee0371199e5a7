"""What the Embedder and every framework's embedders do, in this process and on a server."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sie_core import Item, LocalClient
from sie_core.errors import DeadlineExceededError, InvalidResponseError, SIEError

TOLERANCE = 1e-5
"""How far numbers of the same text may be apart in float32, between 0 and 1 as they are."""

QUERY = "how many people live in berlin"
TEXTS = [
    "berlin museum",
    "population of the city 😀",
    "",
    "river " * 200,
    "berlin museum",
    " \n\t",
    "Ünïcödé 日本語 😀🚀",
]


def solo(model: str, text: str, *, is_query: bool) -> Any:
    """Encode one text alone, without any component."""
    return LocalClient(mode="exact").encode(model, Item(text=text), is_query=is_query)["dense"]


def test_each_text_has_its_own_vector(embedder_subject: Any, tiny_embedder: Path) -> None:
    """In the order given, each vector is the one that its text has alone, as a document."""
    component = embedder_subject.make(str(tiny_embedder))
    vectors = embedder_subject.embed_documents(component, TEXTS)
    expected = [solo(str(tiny_embedder), text, is_query=False) for text in TEXTS]
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)
    assert {type(number) for vector in vectors for number in vector} == {float}
    embedder_subject.close(component)


def test_a_query_is_encoded_as_one(embedder_subject: Any, tiny_embedder: Path) -> None:
    """With the prompt that the model's files have for queries, which documents do not get."""
    component = embedder_subject.make(str(tiny_embedder))
    vector = embedder_subject.embed_query(component, QUERY)
    np.testing.assert_allclose(
        vector, solo(str(tiny_embedder), QUERY, is_query=True), atol=TOLERANCE
    )
    [as_document] = embedder_subject.embed_documents(component, [QUERY])
    assert np.abs(np.subtract(vector, as_document)).max() > 0.01
    embedder_subject.close(component)


def test_inputs_are_not_mutated(embedder_subject: Any, tiny_embedder: Path) -> None:
    """The list of texts is as before."""
    texts = list(TEXTS)
    component = embedder_subject.make(str(tiny_embedder))
    embedder_subject.embed_documents(component, texts)
    assert texts == TEXTS
    embedder_subject.close(component)


def test_no_texts_give_no_vectors(embedder_subject: Any) -> None:
    """An empty list gives an empty list, and no model is needed for it."""
    component = embedder_subject.make("/no/such/model")
    assert embedder_subject.embed_documents(component, []) == []
    embedder_subject.close(component)


def test_a_thousand_texts_come_back_in_order(embedder_subject: Any, tiny_embedder: Path) -> None:
    """More than one request holds, and the order is that of the texts."""
    component = embedder_subject.make(str(tiny_embedder))
    texts = [TEXTS[i % 7] + f" {i % 13}" for i in range(1000)]
    vectors = embedder_subject.embed_documents(component, texts)
    assert len(vectors) == 1000
    alone = dict(
        zip(
            texts[:91],
            embedder_subject.embed_documents(component, texts[:91]),
            strict=True,
        )
    )
    expected = [alone[text] for text in texts]
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)
    embedder_subject.close(component)


def test_threads_that_share_a_component_get_what_they_get_alone(
    embedder_subject: Any, tiny_embedder: Path
) -> None:
    """Eight threads on one component, queries and documents mixed."""
    component = embedder_subject.make(str(tiny_embedder))
    expected = embedder_subject.embed_documents(component, TEXTS)
    query = embedder_subject.embed_query(component, QUERY)
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        part = TEXTS[i % 3 : i % 3 + 3]
        found[i] = (
            embedder_subject.embed_documents(component, part),
            embedder_subject.embed_query(component, QUERY),
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_allclose(found[i][0], expected[i % 3 : i % 3 + 3], atol=TOLERANCE)
        np.testing.assert_allclose(found[i][1], query, atol=TOLERANCE)
    embedder_subject.close(component)


@pytest.mark.usefixtures("released")
def test_a_deadline_bounds_loading_and_encoding(embedder_subject: Any, tiny_embedder: Path) -> None:
    """A time that cannot suffice is a DeadlineExceededError, for queries and documents."""
    component = embedder_subject.make(str(tiny_embedder), timeout_seconds=1e-5)
    with pytest.raises(DeadlineExceededError, match="timeout of 1e-05 s passed"):
        embedder_subject.embed_documents(component, TEXTS)
    with pytest.raises(DeadlineExceededError, match="timeout of 1e-05 s passed"):
        embedder_subject.embed_query(component, QUERY)
    embedder_subject.close(component)


def test_a_closed_component_opens_again_on_use(embedder_subject: Any, tiny_embedder: Path) -> None:
    """`close` may come twice, and the next call loads again."""
    component = embedder_subject.make(str(tiny_embedder))
    first = embedder_subject.embed_query(component, QUERY)
    embedder_subject.close(component)
    embedder_subject.close(component)
    np.testing.assert_allclose(embedder_subject.embed_query(component, QUERY), first, atol=1e-6)
    embedder_subject.close(component)


def test_copies_embed_alike(embedder_subject: Any, tiny_embedder: Path) -> None:
    """Deepcopy and pickle of a component, fresh or used."""
    component = embedder_subject.make(str(tiny_embedder))
    for _ in range(2):
        for twin in (copy.deepcopy(component), pickle.loads(pickle.dumps(component))):
            np.testing.assert_allclose(
                embedder_subject.embed_documents(twin, TEXTS),
                [solo(str(tiny_embedder), text, is_query=False) for text in TEXTS],
                atol=TOLERANCE,
            )
            embedder_subject.close(twin)
        embedder_subject.embed_query(component, QUERY)
    embedder_subject.close(component)


def test_a_token_is_shown_nowhere(embedder_subject: Any, tiny_embedder: Path) -> None:
    """Not in a repr, not in a dump, not in a pickle, not in the error of a failing call."""
    secret = "hf_THIS_IS_A_SECRET"  # noqa: S105
    component = embedder_subject.make(str(tiny_embedder), token=secret)
    assert secret not in embedder_subject.serialised(component)
    assert secret.encode() not in pickle.dumps(component)
    failing = embedder_subject.make("/no/such/model", token=secret)
    with pytest.raises(SIEError) as caught:
        embedder_subject.embed_query(failing, QUERY)
    error: BaseException | None = caught.value
    while error is not None:
        assert secret not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    embedder_subject.close(failing)


def test_a_model_without_dense_vectors_is_an_error(embedder_subject: Any, tiny_bert: Path) -> None:
    """A cross-encoder scores pairs; the error says that it cannot do this."""
    component = embedder_subject.make(str(tiny_bert))
    with pytest.raises(SIEError, match=r"dense|encode"):
        embedder_subject.embed_documents(component, TEXTS)
    embedder_subject.close(component)


class _Short:
    """A client that loses the last vector."""

    def encode(self, _: str, items: Any, **__: Any) -> Any:
        """Answer for all but one."""
        return [{"dense": [1.0, 2.0]} for _ in items[1:]]


def test_a_missing_vector_is_an_error_never_a_shift(embedder_subject: Any) -> None:
    """A reply that does not account for every text raises, in every component."""
    component = embedder_subject.bare.make("m", client=_Short())
    with pytest.raises(InvalidResponseError, match="6 results for 7 texts"):
        embedder_subject.embed_documents(component, TEXTS)
