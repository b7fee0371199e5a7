"""What loading, releasing and swapping weights do to memory: `python benchmarks/loading.py`.

Loading: in a process for each mode, memory at its peak while a checkpoint is loaded and run
once, what stays, and what is left when it was released; all over what the process had before, as
ratios to the file of weights. Swapping: 16 threads score while the weights of a name are swapped;
resident memory after each swap against that after the tenth. Needs /proc (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import Report, add_arguments
from workload import checkpoint

NUM_THREADS = 16
TOLERANCE = 1.05
"""Of memory after the last swap, against that after the tenth."""

TENTH = 10
_MIB = 1024 * 1024
_QUERY, _TEXT = "how many people live in berlin", "berlin had 3,520,031 registered inhabitants "


def status_mib(name: str) -> float:
    """Return one of the sizes in /proc/self/status: `VmRSS` now, `VmHWM` at the peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) / 1024
    raise LookupError(name)


def forget_peak() -> None:
    """Let `VmHWM` begin anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def load_once(folder: Path, mode: Any) -> dict[str, float]:
    """Load and run a checkpoint in this process, release it, and return what memory did."""
    from sie_core import LocalClient

    client = LocalClient(mode=mode)
    client.warm_up(str(_tiny(folder)))  # what any first model costs: libraries, thread pools
    client.release()
    before = status_mib("VmRSS")
    forget_peak()
    client.warm_up(str(folder))
    loaded, peak = status_mib("VmRSS"), status_mib("VmHWM")
    client.release()
    return {
        "before": before,
        "peak": peak - before,
        "loaded": loaded - before,
        "released": status_mib("VmRSS") - before,
    }


def _tiny(folder: Path) -> Path:
    """Return a checkpoint of the same kind with hardly any weights."""
    from workload import make_checkpoint

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = ("model_type", "vocab_size", "max_position_embeddings", "type_vocab_size")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    small = Path(tempfile.mkdtemp()) / "tiny"
    return make_checkpoint({k: config[k] for k in kept} | sizes | {"intermediate_size": 32}, small)


def load_in_a_process(folder: Path, mode: str) -> dict[str, Any]:
    """Run `load_once` where nothing else has used memory; return a row of the report."""
    command = [sys.executable, __file__, "--one", mode, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    weights = (folder / "model.safetensors").stat().st_size / _MIB
    return {
        "mode": mode,
        "weights MiB": weights,
        "before MiB": found["before"],
        **{f"{name} / weights": found[name] / weights for name in ("peak", "loaded", "released")},
    }


def swap_under_load(folder: Path, num_swaps: int) -> list[float]:
    """Swap a checkpoint for copies of it while threads score; return MiB after each swap."""
    from sie_core import Item, LocalClient

    client = LocalClient()
    failures: list[Exception] = []
    stop = threading.Event()
    items = [Item(text=_TEXT * (i + 1)) for i in range(8)]

    def call() -> None:
        while not stop.is_set() and not failures:
            try:
                client.score(str(folder), Item(text=_QUERY), items)
            except Exception as exc:  # noqa: BLE001  shown by the main thread
                failures.append(exc)

    with tempfile.TemporaryDirectory() as place:
        copies = [shutil.copytree(folder, Path(place) / str(i)) for i in range(2)]
        threads = [threading.Thread(target=call) for _ in range(NUM_THREADS)]
        client.warm_up(str(folder))
        for thread in threads:
            thread.start()
        sizes = []
        for number in range(num_swaps):
            client.swap(str(folder), str(copies[number % 2]))
            sizes.append(status_mib("VmRSS"))
        stop.set()
        for thread in threads:
            thread.join()
        client.close()
    if failures:
        raise failures[0]
    return sizes


def swap_rows(sizes: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each swap."""
    base = sizes[min(TENTH, len(sizes)) - 1]
    return [
        {"swaps": number, "resident MiB": size, "against the tenth": size / base}
        for number, size in enumerate(sizes, 1)
    ]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--model", default="bge-reranker-base", help="what is loaded")
    parser.add_argument("--swap-model", default="MiniLM-L6", help="what is swapped")
    parser.add_argument("--modes", nargs="*", default=["exact", "fast"])
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="fail if memory grows with swaps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("memory is read from /proc, which this system does not have")
    if arguments.one:
        sys.stdout.write(json.dumps(load_once(arguments.folder, arguments.one)) + os.linesep)
        return
    report = Report("loading", model=arguments.model, swap_model=arguments.swap_model)
    if arguments.modes:
        folder = checkpoint(arguments.model)
        rows = [load_in_a_process(folder, mode) for mode in arguments.modes]
        report.add("resident memory over what was there before", rows)
    if arguments.swaps:
        rows = swap_rows(swap_under_load(checkpoint(arguments.swap_model), arguments.swaps))
        report.add(f"swaps while {NUM_THREADS} threads score", rows)
        if arguments.check and rows[-1]["against the tenth"] > TOLERANCE:
            sys.exit(f"resident memory grew to {rows[-1]['against the tenth']:.3f} of the tenth's")
    report.save(arguments.json)


if __name__ == "__main__":
    main()
