"""A model that a replica holds leaves memory once, and under nobody's feet."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: the extra distributed brings it")

from sie_core.distributed.replica import Held


def test_it_is_released_when_its_last_user_has_left() -> None:
    """And lets nobody in from the moment it is to go."""
    released = threading.Event()
    held = Held(released.set)
    assert held.enter()
    leaving = threading.Thread(target=held.__del__)
    leaving.start()
    while held.enter():  # until the thread has said that it goes
        held.leave()
    assert not released.is_set()
    held.leave()
    leaving.join(10)
    assert released.is_set()


def test_it_is_released_once() -> None:
    """Ray deletes it by hand, and Python when nobody has it any more."""
    releases = []
    held = Held(lambda: releases.append(1))
    held.__del__()
    del held
    assert releases == [1]
