"""Run the tests against the installed wheels, not the checkout: what users get is what is tested.

Builds the four wheels, installs them into an environment of their own (`.build/wheels`) that
borrows third-party packages from the running one, copies the tests beside it, and runs pytest
there. Arguments go to pytest.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / ".build"
KERNELS = (
    ["sie_core/local/kernels/libsie_kernels.so"]
    if (sys.platform, platform.machine()) == ("linux", "x86_64")
    else []
)
DISTRIBUTIONS = {
    ROOT: ["sie_core/py.typed", "sie_core/server/page.html", *KERNELS],
    ROOT / "packages/sie-langchain": ["sie_langchain/py.typed"],
    ROOT / "packages/sie-llamaindex": ["sie_llamaindex/py.typed"],
    ROOT / "packages/sie-haystack": [
        "sie_haystack/py.typed",
        "haystack_integrations/common/sie/py.typed",
        "haystack_integrations/components/embedders/sie/py.typed",
        "haystack_integrations/components/rankers/sie/py.typed",
    ],
}
"""Each distribution's folder, and what its wheel must contain."""

IMPORT_NAMES = ("sie_core", "sie_langchain", "sie_llamaindex", "sie_haystack")


def main(pytest_arguments: list[str]) -> int:
    """Build, install, check where the packages come from, and test."""
    for name in ("dist", "wheels", "run"):  # what else lies there took long to make
        shutil.rmtree(BUILD / name, ignore_errors=True)
    wheels = [build_wheel(folder, members) for folder, members in DISTRIBUTIONS.items()]
    python = install(wheels)
    run_folder = copy_tests()
    check_origin(python, run_folder)
    return subprocess.run(
        [python, "-m", "pytest", *pytest_arguments], cwd=run_folder, check=False, env=environment()
    ).returncode


def build_wheel(folder: Path, members: list[str]) -> Path:
    """Build one wheel and check that it holds `members` and nothing from outside its packages."""
    out = BUILD / "dist" / folder.name
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, folder)
    (wheel,) = out.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = set(members) - names
    foreign = [name for name in names if name.startswith(("tests/", "examples/", "packages/"))]
    if missing or foreign:
        sys.exit(f"{wheel.name} lacks {sorted(missing)} or holds {sorted(foreign)}")
    print(f"    {wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB")  # noqa: T201
    return wheel


def install(wheels: list[Path]) -> str:
    """Install the wheels into a new environment and return its python."""
    home = BUILD / "wheels"
    venv.create(home, with_pip=False, symlinks=True)
    python = str(home / "bin" / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index",
        *wheels)  # fmt: skip
    # A .pth inside a folder that a .pth names is not read, so the checkout's editable installs,
    # which are such files, stay out.
    site_packages = sysconfig.get_path("purelib", vars={"base": str(home)})
    borrowed = Path(site_packages) / "third_party.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    return python


def copy_tests() -> Path:
    """Copy tests and what they run to a folder from which the checkout is out of reach."""
    run_folder = BUILD / "run"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("tests", "examples", "benchmarks", "deploy", "docs"):
        shutil.copytree(ROOT / name, run_folder / name, ignore=ignore)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, run_folder)
    return run_folder


def check_origin(python: str, run_folder: Path) -> None:
    """Fail unless every package is imported from the new environment."""
    code = f"import {', '.join(IMPORT_NAMES)}\n"
    code += f"print(*[module.__file__ for module in ({', '.join(IMPORT_NAMES)})], sep='\\n')"
    printed = subprocess.run(
        [python, "-c", code], cwd=run_folder, check=True, capture_output=True, text=True
    ).stdout
    for path in printed.split():
        if not Path(path).is_relative_to(BUILD / "wheels"):
            sys.exit(f"{path} is not from the installed wheels")


def environment() -> dict[str, str]:
    """Leave out what would put the checkout back on the path, and find our console script first."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"PATH": f"{BUILD / 'wheels' / 'bin'}{os.pathsep}{kept.get('PATH', '')}"}


def run(*command: object) -> None:
    """Run a command, showing what it prints only if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(part) for part in command)} failed:\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
