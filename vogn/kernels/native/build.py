"""Compile the C sources of this folder once for this machine, and load them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILER, CACHE = "CC", "VOGN_CACHE_DIR"
"""Environment variables: the compiler, and where what it makes is kept."""
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
TUNED = "-march=native"
"""Left out where a compiler does not know it: the results are the same bits, only slower."""
THREADS = "-fopenmp"
"""Of GCC, whose runtime is that of PyTorch for Linux; left out where there is none: everything runs in one thread."""
PATIENCE = 60.0
"""Seconds that a compiler may take."""


@cache
def library() -> ctypes.CDLL | str:
    """The loaded library, or why there is none; compiled at the first call, in less than a second, and then kept in
    ``$VOGN_CACHE_DIR`` (by default ``vogn`` in ``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    compiler = os.environ.get(COMPILER) or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        return f"no C compiler was found (looked for ${COMPILER}, cc, gcc and clang)"
    try:
        path = compiled(compiler.split())
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged
            path.unlink(missing_ok=True)
            return ctypes.CDLL(str(compiled(compiler.split())))
    except (OSError, subprocess.SubprocessError) as error:
        return f"{compiler} did not make a library: {error}"


def compiled(compiler: list[str]) -> Path:
    """The file for this compiler, these sources and this processor, made if it is not there."""
    version = _run([*compiler, "--version"])
    sources = sorted(FOLDER.glob("*.c"))
    tuned = [*FLAGS, TUNED]
    threaded = [*tuned, THREADS] if "Free Software Foundation" in version else tuned
    parts = [*compiler, version, " ".join(threaded), _processor(), *(path.read_text() for path in sources)]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    path = _folder() / f"kernels-{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "kernels.so"
            files = [str(source) for source in sources]
            for flags in (threaded, tuned, FLAGS):
                try:
                    _run([*compiler, *flags, *files, "-o", str(made), "-lm"])
                    break
                except subprocess.CalledProcessError:
                    if flags is FLAGS:
                        raise
            made.replace(path)  # at once: another process may be doing the same
    return path


def _folder() -> Path:
    """Where libraries are kept: of this user alone, for they are run."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get(CACHE) or Path(base) / "vogn").expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owned = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
        if owned and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="vogn-"))  # for this process alone


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
