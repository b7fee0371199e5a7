"""Which devices, number format and number of workers are chosen, why, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sie_core.errors import InvalidRequestError
from sie_core.local import device
from sie_core.local.device import (
    choose,
    choose_device,
    choose_devices,
    choose_dtype,
    choose_max_batch_tokens,
    choose_num_workers,
    fast_dtype,
    is_amx_hidden,
)
from sie_core.settings import EngineSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Processor:
    """What a made-up processor says of itself, and what a measurement on it would give."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setattr
        self.measured = 0

    def be(
        self,
        *,
        machine: str = "x86_64",
        amx: bool | None = False,
        bfloat16: bool | None = False,
        gain: float = 0.5,
    ) -> None:
        """Become a processor; None for what torch cannot tell."""
        answers = {"_is_amx_tile_supported": amx, "_is_avx512_bf16_supported": bfloat16}

        def measure() -> float:
            self.measured += 1
            return gain

        self._set(device.platform, "machine", lambda: machine)
        self._set(device, "_ask_torch", answers.get)
        self._set(device, "measure_bfloat16_gain", measure)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processor]:
    """A processor to be described; verdicts on it are forgotten afterwards."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("SIE_MAX_CPU_ISA", raising=False)
    device._fast_dtype_on_cpu.cache_clear()
    yield Processor(monkeypatch)
    device._fast_dtype_on_cpu.cache_clear()


# --- devices -------------------------------------------------------------------------------------


def test_the_default_device_is_cuda_where_there_is_one_and_never_mps() -> None:
    """Nothing named: CUDA if torch sees it, else the CPU."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device(None).type == expected


def test_spellings_of_the_cpu_are_one_device() -> None:
    """`cpu` and `cpu:0` share a loaded model."""
    assert choose_device("cpu") == choose_device("cpu:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_gpu_is_refused() -> None:
    """The error says what torch sees and what to use."""
    with pytest.raises(InvalidRequestError, match="torch sees no CUDA device; use 'cpu'"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "tpu:0", "meta", ""])
def test_an_unknown_device_is_named(name: str) -> None:
    """The error lists the devices there are."""
    with pytest.raises(InvalidRequestError, match=f"'cpu', 'cuda'.*got {name!r}"):
        choose_device(name)


def test_a_list_is_for_different_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several GPUs, each named once; nothing, twins and others are refused with the list."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices(["cuda:0", "cuda:1"]) == (CUDA, torch.device("cuda", 1))
    assert choose_devices(["cpu"]) == (CPU,)
    refused: list[tuple[list[str], str]] = [
        ([], "empty list"),
        (["cuda:0", "cuda:0"], "twice: .'cuda:0', 'cuda:0'"),
        (["cpu", "cuda:0"], "only CUDA devices can be used together.*'cpu', 'cuda:0'"),
        (["cuda:0", "cuda:2"], "only 2 CUDA"),
    ]
    for names, complaint in refused:
        with pytest.raises(InvalidRequestError, match=complaint):
            choose_devices(names)


def test_several_gpus_have_a_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads is a matter of the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    execution = choose(EngineSettings(device=("cuda:1", "cuda:3"), num_threads=7))
    assert execution.num_workers == 2
    assert execution.describe() == (
        "fast on cuda:1 and cuda:3: float16 (GPUs are fastest in it), 2 workers (one for each "
        "device)"
    )


# --- number formats ------------------------------------------------------------------------------


def test_modes_on_a_gpu() -> None:
    """float16 unless exactness is asked for."""
    assert choose_dtype("auto", None, CUDA)[0] is torch.float16
    assert choose_dtype("fast", None, CUDA)[0] is torch.float16
    assert choose_dtype("exact", None, CUDA)[0] is torch.float32


def test_modes_on_a_processor_with_amx(processor: Processor) -> None:
    """bfloat16 without any measurement, unless exactness is asked for."""
    processor.be(amx=True)
    assert choose_dtype("auto", None, CPU) == (torch.bfloat16, "the processor has AMX")
    assert choose_dtype("fast", None, CPU)[0] is torch.bfloat16
    assert choose_dtype("exact", None, CPU)[0] is torch.float32
    assert processor.measured == 0


def test_modes_on_a_processor_without_bfloat16(processor: Processor) -> None:
    """float32 without any measurement; to insist on `fast` is an error that says why."""
    processor.be()
    dtype, reason = choose_dtype("auto", None, CPU)
    assert dtype is torch.float32
    assert "neither AMX nor other bfloat16" in reason
    with pytest.raises(InvalidRequestError, match=r"mode='fast'.*neither AMX.*mode='auto'"):
        choose_dtype("fast", None, CPU)
    assert processor.measured == 0


@pytest.mark.parametrize("gain", [0.7, 1.1, 1.9])
@pytest.mark.parametrize(
    "traits",
    [
        {"bfloat16": True},
        {"amx": None},
        {"amx": None, "bfloat16": None},
        {"machine": "aarch64"},
    ],
)
def test_where_it_cannot_be_told_it_is_measured_once(
    processor: Processor, traits: dict[str, Any], gain: float
) -> None:
    """bfloat16 without AMX may win or lose; it must win clearly, and the reason has the number."""
    processor.be(**traits, gain=gain)
    for _ in range(2):
        dtype, reason = choose_dtype("auto", None, CPU)
        assert dtype is (torch.bfloat16 if gain > 1.5 else torch.float32)
        assert f"measured {gain:.1f} times as fast" in reason
    assert processor.measured == 1


def test_hidden_amx_is_not_used(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of oneDNN that caps the instruction set decides, and is named as the reason."""
    processor.be(amx=True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    dtype, reason = choose_dtype("auto", None, CPU)
    assert dtype is torch.float32
    assert reason == "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 hides AMX"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert choose_dtype("auto", None, CPU)[0] is torch.bfloat16


def test_kernels_bounded_below_amx_hide_it_too(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel would compute in bfloat16 then, so `auto` is exact, and `fast` is refused."""
    processor.be(amx=True, gain=9)
    for bound in ("avx512", "AVX2"):
        monkeypatch.setenv("SIE_MAX_CPU_ISA", bound)
        expected = (torch.float32, f"SIE_MAX_CPU_ISA={bound} hides AMX")
        assert choose_dtype("auto", None, CPU) == expected
        with pytest.raises(InvalidRequestError, match=f"SIE_MAX_CPU_ISA={bound} hides AMX"):
            choose_dtype("fast", None, CPU)
        assert choose_dtype("auto", "bfloat16", CPU)[0] is torch.bfloat16
    for bound in ("amx", "none"):
        monkeypatch.setenv("SIE_MAX_CPU_ISA", bound)
        assert choose_dtype("auto", None, CPU)[0] is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "is_hidden"),
    [
        (None, False),
        ("", False),
        ("ALL", False),
        ("default", False),
        ("AVX512_CORE_AMX_FP16", False),
        ("avx10_1_512_amx", False),
        ("AVX2", True),
        ("avx512_core_fp16", True),
    ],
)
def test_names_of_instruction_sets(name: str | None, is_hidden: bool) -> None:
    """Those of oneDNN's documentation, in either case."""
    assert is_amx_hidden(name) is is_hidden


def test_the_measurement_gives_a_ratio_and_leaves_threads_alone() -> None:
    """The probe itself runs here, whatever it finds."""
    before = torch.get_num_threads()
    assert 0.001 < device.measure_bfloat16_gain() < 1000
    assert torch.get_num_threads() == before


def test_this_machine_gets_an_answer_with_a_reason() -> None:
    """What the real processor is judged to be has words for it."""
    verdict = fast_dtype(CPU)
    assert verdict.dtype in {None, torch.bfloat16}
    assert verdict.reason


def test_a_named_dtype_is_taken_as_it_is() -> None:
    """Whether or not it is fast here."""
    assert choose_dtype("auto", "bfloat16", CPU) == (torch.bfloat16, "as asked for")
    assert choose_dtype("auto", "float32", CUDA)[0] is torch.float32


@pytest.mark.parametrize(
    ("mode", "dtype", "complaint"),
    [
        ("auto", "fp8", r"float32, float16, bfloat16.*got 'fp8'"),
        ("quick", None, r"mode must be one of auto, exact, fast, but got 'quick'"),
        ("fast", "float32", r"mode='fast' and dtype='float32' both decide.*one of them"),
        ("exact", "float32", r"mode='exact' and dtype='float32' both decide.*one of them"),
    ],
)
def test_bad_modes_and_dtypes_are_named(mode: Any, dtype: str | None, complaint: str) -> None:
    """The error lists what there is, or says what contradicts."""
    with pytest.raises(InvalidRequestError, match=complaint):
        choose_dtype(mode, dtype, CPU)


# --- workers -------------------------------------------------------------------------------------


def test_workers_are_as_many_as_cores_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument comes before the variable, the variable before what may be used."""
    monkeypatch.setattr(device, "count_cores", lambda: 5)
    monkeypatch.delenv("SIE_NUM_THREADS", raising=False)
    assert choose_num_workers(None, [CPU]) == (5, "of one thread each, 5 cores may be used")
    monkeypatch.setenv("SIE_NUM_THREADS", "3")
    assert choose_num_workers(None, [CPU])[0] == 3
    assert choose_num_workers(2, [CPU]) == (2, "of one thread each, as num_threads=2 asks for")


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5"])
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The error names the variable and what it says."""
    monkeypatch.setenv("SIE_NUM_THREADS", text)
    with pytest.raises(InvalidRequestError, match=f"SIE_NUM_THREADS must be .* is {text!r}"):
        choose_num_workers(None, [CPU])


def test_threads_that_cannot_be_divided_make_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers would each use all cores: one does then, and the description says so."""
    monkeypatch.setattr(device, "can_limit_threads", lambda: False)
    num_workers, reason = choose_num_workers(8, [CPU])
    assert num_workers == 1
    assert "cannot be divided" in reason


@pytest.mark.parametrize("number", [0, -5, 1.5, True])
@pytest.mark.parametrize("name", ["num_threads", "max_batch_tokens", "max_queued_tokens"])
def test_a_bad_number_is_named(name: str, number: object) -> None:
    """Below one, or not an integer, is refused."""
    settings: dict[str, Any] = {name: number}
    with pytest.raises(InvalidRequestError, match=f"{name} must be .* got {number!r}"):
        choose(EngineSettings(device="cpu", **settings))


def test_batches_are_larger_on_a_gpu() -> None:
    """The device's own budget, unless one is given."""
    assert choose_max_batch_tokens(None, CUDA) > choose_max_batch_tokens(None, CPU)
    assert choose_max_batch_tokens(77, CPU) == 77


def test_the_description_says_what_and_why(processor: Processor) -> None:
    """One line: mode, device, format and workers, each with its reason."""
    processor.be(amx=True)
    assert choose(EngineSettings(device="cpu", num_threads=1)).describe() == (
        "fast on cpu: bfloat16 (the processor has AMX), 1 worker (of one thread each, as "
        "num_threads=1 asks for)"
    )
    assert (
        choose(EngineSettings(device="cpu", mode="exact"))
        .describe()
        .startswith("exact on cpu: float32 (as mode='exact' asks for), ")
    )


def test_the_folder_of_torchs_library_is_where_it_is_looked_for() -> None:
    """On Linux the limit on threads must work: without it, each worker would use all cores."""
    if (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").exists():
        assert device.can_limit_threads()
