"""Compile the engine's C kernels when sie-core is built, where that is possible.

On Linux with an x86-64 processor and a C compiler (`CC`, else `cc`) the wheel gets a library and is
tagged for that platform. Elsewhere, or when compiling fails, the wheel is pure Python: scoring
then runs in torch, slower, with the same scores. `SIE_REQUIRE_KERNELS=1` makes a failure an error.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent / "sie_core" / "local" / "kernels"
LIBRARY = KERNELS / "libsie_kernels.so"

_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
_UNITS = {
    "model": ("model.c", []),
    "avx2": ("float32.c", ["-mavx2", "-mfma", "-DVECTOR_WIDTH=8"]),
    "avx512": ("float32.c", [*_AVX512, "-mprefer-vector-width=512", "-DVECTOR_WIDTH=16"]),
    "amx": (
        "amx.c",
        [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-mprfchw"],
    ),
}
"""What is compiled: each file for its instruction set; the right one is chosen at run time."""


class KernelBuildHook(BuildHookInterface[Any]):
    """Puts the library beside its sources and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together; also for an editable installation."""
        del version
        if self.target_name != "wheel":
            return
        LIBRARY.unlink(missing_ok=True)
        problem = _compile()
        if problem is None:
            build_data["artifacts"].append(str(LIBRARY.relative_to(self.root)))
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"
        elif os.environ.get("SIE_REQUIRE_KERNELS"):
            sys.exit(f"the C kernels could not be built: {problem}")
        else:
            self.app.display_warning(f"without C kernels, the CPU will be slower: {problem}")


def _compile() -> str | None:
    """Compile the library; return why it could not be, None if it was."""
    machine = platform.machine().lower()
    if sys.platform != "linux" or machine not in {"x86_64", "amd64"}:
        return f"they are for Linux on x86-64, not {sys.platform} on {machine}"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        objects = {name: Path(folder) / f"{name}.o" for name in _UNITS}
        commands = [
            [*compiler, *_FLAGS, *flags, "-c", str(KERNELS / source), "-o", str(objects[name])]
            for name, (source, flags) in _UNITS.items()
        ]
        linked = [str(path) for path in objects.values()]
        commands.append([*compiler, "-shared", *linked, "-o", str(LIBRARY), "-lm"])
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            except OSError as exc:
                return f"{compiler[0]}: {exc.strerror}"
            except subprocess.CalledProcessError as exc:
                return f"`{shlex.join(command)}` failed:\n{exc.stderr}"
    return None
