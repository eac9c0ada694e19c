"""C++ that is compiled once a machine, by whatever compiler is there, and called through ctypes.

Neither Python's headers nor an own wheel for each platform are needed, and whoever has no compiler has the
Python that the C++ is tested against. What is compiled lies in the user's cache and is named by a digest of
all that it depends on, so that it never grows stale.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# No contraction (a * b + c in one rounding): the same bits on CPUs that have it and on those that don't.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
COMPILERS = ("c++", "g++", "clang++")
COMPILE_SECONDS = 300


class NotBuilt(Exception):
    """Why there is no compiled code here, and what to do about it, in one sentence."""


def load(source: Path) -> ctypes.CDLL:
    """The library made of one C++ file; compiled first if no earlier call has done so. Raises NotBuilt."""
    path = library_path(source)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not there yet, or damaged
        _compile(source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuilt(f"what the compiler made of {source.name} can't be loaded ({error})") from error


def library_path(source: Path) -> Path:
    """Where the library of a C++ file is, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shapeloom"
    # libc: homes are shared by machines of one cluster, whose systems may differ.
    system = (FLAGS, sys.platform, platform.machine(), platform.libc_ver())
    digest = hashlib.sha256(source.read_bytes() + repr(system).encode()).hexdigest()[:16]
    return cache / f"{source.stem}-{digest}.so"


def _compile(source: Path, path: Path) -> None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None:
        raise NotBuilt(
            f"no C++ compiler was found ({', '.join(names)}): install g++ or clang++, or name one in CXX"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own until it is whole: several processes may be at it.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            made = Path(folder) / path.name
            command = [compiler, *FLAGS, str(source), "-o", str(made)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
            if run.returncode or not made.is_file():
                raise NotBuilt(f"{compiler} failed on {source.name}: {run.stderr.strip()[-500:]}")
            os.replace(made, path)
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{compiler} took more than {COMPILE_SECONDS} s for {source.name}") from error
    except OSError as error:
        raise NotBuilt(
            f"{path.parent} can't be written ({error}): name another folder in XDG_CACHE_HOME"
        ) from error
