"""The GPU's worker, with a stand-in for the GPU: packing, filling, capturing, replaying.

A CUDA graph replays what was launched, with the sizes and in the memory that it was captured with.
So does the stand-in: it records the tensor operations of a forward pass and replays them. A length
of the first batch that found its way into the pass would show in the second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sie_core.local import cuda, graphs
from sie_core.local.cuda import find_varlen_kernel
from sie_core.local.layers import Placement
from sie_core.local.lora import AdaptedPair, Adapter, AdapterWorker, LowRank
from sie_core.local.packing import Rounding
from sie_core.local.worker import GroupedWorker, VarlenWorker, choose_rounding

if TYPE_CHECKING:
    from pathlib import Path

    from sie_core.local.encoder import PairEncoder
    from tests.local.conftest import LoadEncoder, MakePairs, PaddedLogits

CHECKPOINTS = ["tiny_bert", "tiny_bert_two_labels", "tiny_xlmr", "tiny_modernbert"]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seqlens: tuple[torch.Tensor, torch.Tensor],
    max_lengths: tuple[int, int],
    window: int | None,
) -> torch.Tensor:
    """Do what the kernels do, by one large mask: everything comes from tensors, as on a GPU."""
    assert all(cu.dtype == torch.int32 for cu in cu_seqlens)
    rows = [torch.arange(len(x), dtype=torch.int32) for x in (query, key)]
    owners = [
        torch.searchsorted(cu, row, right=True) for cu, row in zip(cu_seqlens, rows, strict=True)
    ]
    positions = [
        row - cu[owner - 1] for row, cu, owner in zip(rows, cu_seqlens, owners, strict=True)
    ]
    mask = owners[0][:, None] == owners[1][None, :]
    # A kernel computes no further than the bounds it was given.
    mask &= (positions[0] < max_lengths[0])[:, None] & (positions[1] < max_lengths[1])[None, :]
    if window is not None:
        mask &= (positions[0][:, None] - positions[1][None, :]).abs() <= window
    q, k, v = (x.transpose(0, 1).float() for x in (query, key, value))
    scores = (q @ k.transpose(1, 2) / query.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype)


class Tape(TorchDispatchMode):
    """Records operations with the very tensors they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and keep it."""
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run all again, and put what they give where it was given then."""
        for function, args, kwargs, out in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRuntime:
    """Stands in for a GPU: `capture` records, and what it returns replays."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.num_captures = 0
        self.num_replays = 0
        self.num_waits = 0
        self.num_releases = 0

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Do nothing around it."""
        yield

    def host_row(self, size: int) -> torch.Tensor:
        """Return memory full of what must not be read."""
        return torch.full((size,), -(10**9), dtype=torch.int32)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record the operations of `run`."""
        self.num_captures += 1
        with Tape() as tape:
            run()

        def replay() -> None:
            self.num_replays += 1
            tape.replay()

        return replay

    def wait(self) -> None:
        """Count."""
        self.num_waits += 1

    def release_memory(self) -> None:
        """Count."""
        self.num_releases += 1


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any work is too large for a graph."""
    monkeypatch.setattr(graphs, "MAX_GRAPH_FLOPS", 0)


def open_worker(encoder: PairEncoder, runtime: TapeRuntime) -> VarlenWorker:
    """Open a GPU's worker on the stand-in."""
    return VarlenWorker(encoder._classifier, encoder.architecture, attend, runtime)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_replayed_logits_are_those_of_the_padded_forward(
    request: pytest.FixtureRequest,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    padded_logits: PaddedLogits,
    checkpoint: str,
) -> None:
    """Batches of the same bucket, of other lengths and numbers of pairs, through one graph."""
    folder: Path = request.getfixturevalue(checkpoint)
    encoder, runtime = load_encoder(folder), TapeRuntime()
    worker = open_worker(encoder, runtime)
    for lengths in ([60, 40, 20], [30, 31, 5, 6, 20, 30], [100, 4, 17], [121, 7]):
        pairs = make_pairs(encoder, lengths)
        got, expected = torch.tensor(worker(pairs)), padded_logits(folder, pairs)
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-5)
    assert (runtime.num_captures, runtime.num_replays) == (1, 3)
    assert runtime.num_waits == 4


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.usefixtures("no_graphs")
def test_large_work_runs_without_graphs(
    request: pytest.FixtureRequest,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    padded_logits: PaddedLogits,
    checkpoint: str,
) -> None:
    """The same scores, and nothing is captured however often the sizes recur."""
    folder: Path = request.getfixturevalue(checkpoint)
    encoder, runtime = load_encoder(folder), TapeRuntime()
    worker = open_worker(encoder, runtime)
    pairs = make_pairs(encoder, [60, 40, 20, 128])
    for _ in range(3):
        got, expected = torch.tensor(worker(pairs)), padded_logits(folder, pairs)
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-5)
    assert runtime.num_captures == 0


def test_memory_that_runs_out_is_given_back_and_scoring_recovers(
    tiny_bert: Path, load_encoder: LoadEncoder, make_pairs: MakePairs
) -> None:
    """The caller gets the error (and halves the batch); graphs are dropped; the next call works."""
    encoder, runtime = load_encoder(tiny_bert), TapeRuntime()
    is_full = False

    class Full:
        def forward(self, *arguments: object) -> torch.Tensor:
            if is_full:
                raise torch.OutOfMemoryError
            return encoder._classifier.forward(*arguments)  # type: ignore[arg-type]

    worker = VarlenWorker(Full(), encoder.architecture, attend, runtime)
    pairs = make_pairs(encoder, [60, 40, 20])
    expected = worker(pairs)
    worker(pairs)
    assert worker.num_graphs == 1
    is_full = True
    with pytest.raises(torch.OutOfMemoryError):
        worker(make_pairs(encoder, [100, 100, 90]))
    assert (worker.num_graphs, runtime.num_releases) == (0, 1)
    is_full = False
    assert worker(pairs) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("rounding", [Rounding(length=16, total=128), Rounding(length=64)])
def test_rounded_sizes_change_no_score(
    request: pytest.FixtureRequest,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    checkpoint: str,
    rounding: Rounding,
) -> None:
    """Padding behind pairs and batches is seen by nobody, within windows and in means too."""
    encoder = load_encoder(request.getfixturevalue(checkpoint))
    worker = GroupedWorker(encoder._classifier, encoder.architecture, torch.device("cpu"), rounding)
    pairs = make_pairs(encoder, [60, 40, 20, 128, 33, 31, 16, 7, 101, 65])
    assert worker(pairs) == pytest.approx(encoder.logits(pairs), abs=5e-5)


@pytest.mark.parametrize("device", ["cpu", "mps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_made_to_recur(device: str, dtype: torch.dtype) -> None:
    """Each new one would cost a kernel, in time or in memory."""
    rounding = choose_rounding(Placement(torch.device(device), dtype))
    assert rounding.length > 1
    assert rounding.total % 128 == 0


def test_a_cpu_has_no_varlen_kernel(tiny_bert: Path, load_encoder: LoadEncoder) -> None:
    """There, and in float32 anywhere, sequences are attended to by groups."""
    architecture = load_encoder(tiny_bert).architecture
    for name, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        assert find_varlen_kernel(torch.device(name), dtype, architecture) is None


@pytest.mark.parametrize("window", [None, 64])
def test_torchs_kernel_takes_what_it_is_given(window: int | None) -> None:
    """Arguments and shapes, on tensors without data: the kernel itself needs a GPU."""
    kernel = cuda._torch_kernel(needs_windows=window is not None)
    if kernel is None:
        pytest.skip("this torch has no such kernel")
    query = torch.empty(3, 4, 8, dtype=torch.float16, device="meta")
    rows = torch.empty(20, 3, 4, 8, dtype=torch.float16, device="meta")
    cu_seqlens = torch.empty(4, dtype=torch.int32, device="meta")
    attended = kernel(
        query,
        rows[:, 0],
        rows[:, 1],
        cu_seqlens=(cu_seqlens, cu_seqlens),
        max_lengths=(1, 10),
        window=window,
    )
    assert attended.shape == query.shape


@pytest.mark.parametrize("has_windows", [True, False])
def test_kernels_are_told_of_windows_where_they_know_them(*, has_windows: bool) -> None:
    """That of torch knew none at first: a model with windows then looks elsewhere."""
    given: dict[str, object] = {}

    def function(*arguments: object, **options: object) -> torch.Tensor:
        given.update(options)
        assert len(arguments) == 7
        return torch.empty(0)

    kernel = cuda._adapted(function, has_windows=has_windows)
    x, cu_seqlens = torch.empty(0), torch.empty(0)
    kernel(x, x, x, cu_seqlens=(cu_seqlens, cu_seqlens), max_lengths=(1, 1), window=None)
    assert given == ({"window_size": (-1, -1)} if has_windows else {})
    if has_windows:
        kernel(x, x, x, cu_seqlens=(cu_seqlens, cu_seqlens), max_lengths=(1, 1), window=64)
        assert given == {"window_size": (64, 64)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("checkpoint", "layer"),
    [
        ("tiny_bert", "bert.encoder.layer.{}.attention.self.value"),
        ("tiny_modernbert", "model.layers.{}.attn.Wqkv"),
    ],
)
def test_adapters_by_cumulative_lengths_score_as_by_groups(
    checkpoint: str,
    layer: str,
    dtype: str,
    *,
    load_encoder: LoadEncoder,
    make_pairs: MakePairs,
    request: pytest.FixtureRequest,
) -> None:
    """A GPU's attention and the other give the same, also where the other rounds lengths up."""
    encoder = load_encoder(request.getfixturevalue(checkpoint), dtype)
    width = 3 * 32 if "Wqkv" in layer else 32
    generator = torch.Generator().manual_seed(3)
    adapters = [
        Adapter(
            "random",
            {
                layer.format(i): LowRank(
                    torch.randn(4, 32, generator=generator),
                    0.1 * torch.randn(width, 4, generator=generator),
                )
                for i in range(encoder.architecture.num_layers)
            },
            {},
        )
        for _ in range(2)
    ]
    plain = make_pairs(encoder, [9, 30, 17, 5])
    pairs = [AdaptedPair.of(pair, adapter) for pair in plain for adapter in adapters]
    placement = Placement(torch.device("cpu"), getattr(torch, dtype))
    found, expected = (
        AdapterWorker(
            encoder.open_worker(), encoder._twin.classifier, encoder.architecture, placement, kernel
        )(pairs)
        for kernel in (attend, None)
    )
    assert found == pytest.approx(expected, abs=1e-4 if dtype == "float32" else 0.2)
    assert expected[::2] != pytest.approx(expected[1::2], abs=1e-3)
