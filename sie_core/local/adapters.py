"""`AdapterStore`: the LoRA adapters that are loaded onto one model, and who leaves for another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from sie_core.local.lora import Adapter
from sie_core.settings import MAX_LORAS


class AdapterStore:
    """Adapters by name: each is loaded once, in a thread, while the model goes on serving.

    Over the limit the least recently used leaves. A call that has an adapter keeps it until its
    end, whatever leaves meanwhile.

    Args:
        read: Makes the adapter of a name from its folder, fit for the model.
        max_adapters: How many are kept.
    """

    def __init__(
        self, read: Callable[[str, Path], Adapter], *, max_adapters: int = MAX_LORAS
    ) -> None:
        self._read = read
        self._max_adapters = max_adapters
        self._loadings: OrderedDict[str, Future[Adapter]] = OrderedDict()
        self.reset_lock()

    def reset_lock(self) -> None:
        """Make the lock anew, in a forked child, and forget loads that its parent had begun."""
        self._lock = threading.Lock()
        for name, loading in list(self._loadings.items()):
            if not loading.done():
                del self._loadings[name]

    def acquire(self, name: str, find: Callable[[], Path]) -> Future[Adapter]:
        """Return the future of an adapter, shared by all who ask for it at a time.

        A load that fails fails for everyone who waits for it; the next call tries again.

        Args:
            name: The same for the same adapter.
            find: Returns its folder; may download.
        """
        with self._lock:
            loading = self._loadings.get(name)
            if loading is not None:
                self._loadings.move_to_end(name)
                return loading
            loading = self._loadings[name] = Future()
            self._shrink()
        # A thread, so that a caller whose time is up can leave while loading goes on.
        threading.Thread(
            target=self._load, args=(name, find, loading), name=f"sie-lora-{name}", daemon=True
        ).start()
        return loading

    def find(self, name: str) -> Adapter | None:
        """Return an adapter that is loaded by now, None if it is not."""
        with self._lock:
            loading = self._loadings.get(name)
        return loading.result() if loading is not None and _is_there(loading) else None

    def unload(self, name: str | None = None) -> int:
        """Let go of one adapter, or of all; return how many."""
        with self._lock:
            names = [it for it in self._loadings if name is None or it == name]
            for it in names:
                del self._loadings[it]
        return len(names)

    def loaded(self) -> dict[str, int]:
        """Return the bytes of each adapter that is loaded, the least recently used first."""
        with self._lock:
            loadings = list(self._loadings.items())
        return {
            name: loading.result().num_bytes for name, loading in loadings if _is_there(loading)
        }

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all adapters."""
        return sum(self.loaded().values())

    def resize(self, max_adapters: int) -> None:
        """Change the limit; the least recently used that no longer fit leave."""
        with self._lock:
            self._max_adapters = max_adapters
            self._shrink()

    def _load(self, name: str, find: Callable[[], Path], loading: Future[Adapter]) -> None:
        try:
            adapter = self._read(name, find())
        except BaseException as exc:  # noqa: BLE001  it belongs to the callers who wait
            with self._lock:
                if self._loadings.get(name) is loading:
                    del self._loadings[name]
            loading.set_exception(exc)
            return
        loading.set_result(adapter)
        with self._lock:
            self._shrink()

    def _shrink(self) -> None:
        """Drop the least recently used of those that are loaded. The store is locked."""
        there = [name for name, loading in self._loadings.items() if loading.done()]
        for name in there[: max(0, len(self._loadings) - self._max_adapters)]:
            del self._loadings[name]


def _is_there(loading: Future[Adapter]) -> bool:
    return loading.done() and loading.exception() is None
