"""The options of `sie serve` that are about a cluster."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sie_core.cli.program import program

pytestmark = pytest.mark.usefixtures("logging_as_before")


def refusal(*arguments: str) -> str:
    """Run the program in this process, and return what it refuses."""
    result = CliRunner().invoke(program, ["serve", "--port", "0", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ")


@pytest.mark.parametrize(
    "option", [("--max-replicas", "4"), ("--ray-address", "auto"), ("--gpus-per-replica", "1.0")]
)
def test_an_option_about_replicas_needs_the_engine_ray(option: tuple[str, str]) -> None:
    """It would have no effect."""
    message = refusal(*option)
    assert message.startswith(" ".join(option))
    assert "--engine ray" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-replicas", "3", "--max-replicas", "2"), "which is 3, but got 2"),
        (("--device", "cuda:0,cuda:1"), "but got 'cuda:0,cuda:1'"),
        (("--target-ongoing-requests", "0"), "but got 0"),
        (("--ray-address", "ray://head:10001"), "on a machine of the Ray cluster"),
    ],
)
def test_what_makes_no_sense_on_a_cluster_is_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    """Before Ray is started."""
    pytest.importorskip("ray.serve", reason="Ray is not installed: the extra distributed brings it")
    assert message in refusal("--engine", "ray", *arguments)


def test_the_options_have_a_panel_of_their_own() -> None:
    """In `sie serve --help`."""
    shown = CliRunner().invoke(program, ["serve", "--help"], env={"COLUMNS": "120"}).output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    panel = plain[plain.index("─ Cluster ─") :]
    assert "--engine" in panel
    assert "--max-replicas" in panel


def test_without_ray_the_command_says_what_to_install() -> None:
    """In the line that pip takes."""
    program_text = (
        "import sys\n"
        "sys.modules['ray'] = None\n"
        "from sie_core.cli.__main__ import main\n"
        "sys.argv = ['sie', 'serve', '--engine', 'ray', '--port', '0']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program_text],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert 'pip install "sie-core[distributed,local,server,cli]"' in done.stderr
    assert "Traceback" not in done.stderr
