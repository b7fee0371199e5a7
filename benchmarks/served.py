"""Servers that benchmarks start, each a process of its own: ours, and the real one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

_PATIENCE_SECONDS = 120
_MIB = 1024 * 1024

REAL_MODEL_CONFIG = """\
sie_id: {model}
weights_path: {weights}
inputs: {{text: true, image: false, audio: false, video: false}}
tasks: {{encode: null, score: {{}}, extract: null}}
max_sequence_length: 512
profiles:
  default:
    max_batch_tokens: 8192
    compute_precision: {precision}
    adapter_path: sie_server.adapters.cross_encoder:CrossEncoderAdapter
    adapter_options: {{loadtime: {{}}, runtime: {{}}}}
"""


class ServerError(Exception):
    """A server did not start."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server.

    Attributes:
        process: The one that was started.
        url: Where it listens.
    """

    process: subprocess.Popen[bytes]
    url: str

    @property
    def resident_mib(self) -> float:
        """Its memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _MIB

    @property
    def cpu_seconds(self) -> float:
        """Time that it has computed."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serve_ours(model: str, *arguments: str) -> Iterator[Served]:
    """Run `sie serve` until the end of the block; `model` may be NAME=FOLDER."""
    port = free_port()
    command = [sys.executable, "-m", "sie_core.cli", "serve", "--port", str(port), model]
    url = f"http://127.0.0.1:{port}"
    with _run([*command, *arguments], os.environ) as process:
        _wait_for(process, lambda: httpx.get(f"{url}/readyz").is_success)
        yield Served(process, url)


@contextlib.contextmanager
def serve_real(
    environment: Path, model: str, weights: Path, *, precision: str = "null"
) -> Iterator[Served]:
    """Run sie-server until the end of the block, with the model loaded.

    Args:
        environment: Where `make test-real-server` has installed it.
        model: The name that callers use.
        weights: Folder of a cross-encoder.
        precision: The number format that the model's profile names; `null` for the server's own.
    """
    url = f"http://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        content = REAL_MODEL_CONFIG.format(model=model, weights=weights, precision=precision)
        (Path(folder) / "model.yaml").write_text(content, encoding="utf-8")
        command = [str(environment / "venv/bin/sie-server"), "serve", "--host", "127.0.0.1"]
        command += ["--port", url.rpartition(":")[2], "--device", "cpu"]
        command += ["--models-dir", folder, "--models", model]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1"}
        settings.pop("PYTHONPATH", None)
        body = {"query": {"text": "a"}, "items": [{"text": "b"}]}
        with _run(command, settings) as process:
            _wait_for(process, lambda: httpx.post(f"{url}/v1/score/{model}", json=body).is_success)
            yield Served(process, url)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@contextlib.contextmanager
def _run(command: Sequence[str], settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=settings, start_new_session=True
        )
        # Whoever ends the script by a signal ends what it has started.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            yield process
        except ServerError as exc:
            log.seek(0)
            msg = f"{exc}:\n{log.read().decode()[-4000:]}"
            raise ServerError(msg) from exc
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_SECONDS)
        return
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for(process: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if is_there():
                return
        threading.Event().wait(0.1)
    msg = "the server did not start"
    raise ServerError(msg)
