"""A real SIE server, installed from the package index into a virtual environment of its own.

sie-server 0.10.1 needs Python 3.12, torch below 2.10 and transformers below 5, none of which this
project's own environment has. What it needs for cross-encoders is installed; the libraries of its
other model families are left out. The environment is kept in `.build/real-server` (or where
SIE_TEST_REAL_SERVER says) and made once. SIE_TEST_PYTHON312 names an interpreter;
SIE_TEST_TORCH_INDEX names an index with CPU builds of torch. Without it, the build of the usual
index is installed, which on Linux brings gigabytes of CUDA libraries: it does not import without.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sie_core.errors import SIEError
from sie_core.remote import SIEClient

SERVER = "sie-server==0.10.1"
MODEL = "test/tiny-ce"

REQUIREMENTS = [
    "sie-sdk==0.10.1",
    "transformers>=4.57,<5",
    "sentence-transformers>=5.4.1,<6",
    "fastapi<1",
    "uvicorn[standard]<1",
    "uvloop",
    "msgspec",
    "orjson<4",
    "pydantic-settings<3",
    "typer<1",
    "rich<14",
    "blake3<1",
    "boto3",
    "loguru<1",
    "peft<1",
    "einops<1",
    "watchdog<7",
    "websockets<15",
    "jsonschema<5",
    "python-multipart<1",
    "threadpoolctl",
    "packaging<25",
    "opentelemetry-sdk<2",
    "opentelemetry-exporter-otlp<2",
    "opentelemetry-instrumentation-fastapi>=0.50b0,<1",  # it has only pre-releases
    "setuptools",
]
"""What sie-server imports to serve a cross-encoder; it names far more for its other models."""

TORCH = "torch>=2.9,<2.10"

MODEL_CONFIG = """\
sie_id: {model}
weights_path: {weights}
inputs: {{text: true, image: false, audio: false, video: false}}
tasks: {{encode: null, score: {{}}, extract: null}}
max_sequence_length: 512
profiles:
  default:
    max_batch_tokens: 8192
    compute_precision: null
    adapter_path: sie_server.adapters.cross_encoder:CrossEncoderAdapter
    adapter_options: {{loadtime: {{}}, runtime: {{}}}}
"""

MAKE_WEIGHTS = """\
import string, sys
from pathlib import Path
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
torch.manual_seed(0)
letters = list(string.ascii_lowercase + string.digits)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + x for x in letters)]
(folder / "vocab.txt").write_text("\\n".join(words))
tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=512)
tokenizer.save_pretrained(folder)
config = BertConfig(
    vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, num_labels=1, initializer_range=0.3,
)
BertForSequenceClassification(config).save_pretrained(folder)
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Install gigabytes only when asked to: `-m real_server`, as `make test-real-server` does."""
    if "real_server" in (config.option.markexpr or ""):
        return
    reason = "installs and runs sie-server: run `make test-real-server`"
    for item in items:
        if item.get_closest_marker("real_server"):
            item.add_marker(pytest.mark.skip(reason=reason))


def install(python: Path, folder: Path) -> None:
    """Make the environment and the model, unless they are there."""
    done = folder / "installed"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    _run(str(python), "-m", "venv", str(folder / "venv"))
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
    index = os.environ.get("SIE_TEST_TORCH_INDEX")
    _run(*pip, *(["--index-url", index] if index else []), TORCH)
    _run(*pip, TORCH, *REQUIREMENTS)
    _run(*pip, "--no-deps", SERVER)
    _run(str(folder / "venv/bin/python"), "-c", MAKE_WEIGHTS, str(folder / "weights"))
    models = folder / "models"
    models.mkdir()
    config = MODEL_CONFIG.format(model=MODEL, weights=folder / "weights")
    (models / "tiny-ce.yaml").write_text(config)
    done.touch()


def _run(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.fail(f"{' '.join(command)} failed:\n{finished.stdout}\n{finished.stderr[-4000:]}")


@dataclass
class RealServer:
    """A running sie-server."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def model(self) -> str:
        """The name of its one model."""
        return MODEL

    def kill(self) -> None:
        """End it at once, as a crash would, with the workers that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture(scope="session")
def environment(python312: Path) -> Path:
    """The folder with sie-server installed, or a skip that says why there is none."""
    if sys.platform == "win32":
        pytest.skip("sie-server needs uvloop, which Windows has not")
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("SIE_TEST_REAL_SERVER", root / ".build" / "real-server"))
    install(python312, folder)
    return folder


@pytest.fixture(scope="session")
def start_server(
    environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], RealServer]]:
    """Start servers; all are ended after the tests."""
    servers: list[RealServer] = []

    def start() -> RealServer:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log.txt"
        command = [
            str(environment / "venv/bin/sie-server"),
            *("serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
            *("--models-dir", str(environment / "models"), "--models", MODEL),
        ]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=settings, start_new_session=True
            )
        server = RealServer(process, f"http://127.0.0.1:{port}", log)
        servers.append(server)
        wait_until_alive(server)
        return server

    yield start
    for server in servers:
        server.kill()


def wait_until_alive(server: RealServer) -> None:
    """Ask until the server says that it is alive, for two minutes."""
    end = time.monotonic() + 120
    with SIEClient(server.url) as client:
        while server.process.poll() is None and time.monotonic() < end:
            try:
                client.health(timeout_seconds=5)
            except SIEError:
                continue
            return
    pytest.fail(f"sie-server did not start:\n{server.log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def server(start_server: Callable[[], RealServer]) -> RealServer:
    """One server for the tests that leave it as it is."""
    return start_server()
