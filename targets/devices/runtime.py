"""A Python that runs anywhere on Linux and Android: interpreter, NumPy, LiteRT, C library and loader in one folder.

It comes from Debian's packages and the wheels that are pinned here, so that nothing needs compiling, root or a phone:

    bin/python3.11          Debian's
    lib/*.so*               the loader, the C library and what else the rest is linked with
    lib/python3.11/         the standard library, less what tests, talks to networks or draws windows
    lib/python3/dist-packages/    numpy and ai_edge_litert, less what `Interpreter` does not need
    runtime.json            what it was made of

Started through its own loader (`start`) it takes nothing from the machine but the kernel: another C library, such as
Android's, does not matter, and no file of it has to lie where Debian would put it.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgeface.data.pack import cache_folder
from edgeface.errors import MissingToolError
from edgeface.files import sha256_file, write_folder, write_json
from targets.devices import debian
from targets.devices.device import AGENT

Architecture = Literal["arm64", "amd64"]

# As constraints.txt has them (a test compares): the file then meets the same kernels here and there.
WHEELS = {"ai-edge-litert": "2.3.0", "numpy": "2.4.6"}
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8"),
)
TRIPLETS = {"arm64": "aarch64", "amd64": "x86_64"}
LOADERS = {"arm64": "ld-linux-aarch64.so.1", "amd64": "ld-linux-x86-64.so.2"}

MANIFEST = "runtime.json"
PYTHON = "bin/python3.11"

_SITE = "lib/python3/dist-packages"  # where Debian's Python looks, relative to itself
_STANDARD = "lib/python3.11"
_LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1"),
    *("libgcc_s.so.1", "libstdc++.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8"),
)
# Left out, by path below the standard library: tests, windows, databases, and modules whose libraries are not here.
_STANDARD_DROPS = (
    *(
        "test/*",
        "*/test/*",
        "*/tests/*",
        "idlelib/*",
        "tkinter/*",
        "turtle*",
        "lib2to3/*",
        "distutils/*",
        "ensurepip/*",
    ),
    *("pydoc_data/*", "sqlite3/*", "curses/*", "dbm/*", "xmlrpc/*", "wsgiref/*", "venv/*", "config-*", "*.pickle"),
    *("lib-dynload/_codecs_*", "lib-dynload/_multibytecodec*", "lib-dynload/_test*", "lib-dynload/xx*"),
    *("lib-dynload/_xx*", "lib-dynload/_sqlite3*", "lib-dynload/_ssl*", "lib-dynload/_hashlib*", "lib-dynload/_bz2*"),
    *("lib-dynload/_lzma*", "lib-dynload/_curses*", "lib-dynload/_dbm*", "lib-dynload/_uuid*", "lib-dynload/_crypt*"),
    *("lib-dynload/readline*", "lib-dynload/nis*", "lib-dynload/ossaudiodev*", "lib-dynload/audioop*"),
)
_NUMPY_DROPS = (
    *("*/tests/*", "*.pyi", "*.a", "*.h", "*.pxd", "*.pyx", "*.c", "*.in", "*.ini", "*.md", "numpy/f2py/*"),
    *("numpy/distutils/*", "numpy/doc/*", "numpy/ctypeslib/*", "numpy/_configtool.py", "numpy/conftest.py"),
    *("numpy/_core/include/*", "numpy/_core/lib/*", "numpy/random/*", "numpy/fft/*.so", "numpy/_pyinstaller/*"),
    *("*_tests.cpython*", "numpy/_core/_simd*", "numpy/linalg/lapack_lite*", "numpy/typing/mypy_plugin.py"),
)
_LITERT_KEEPS = (
    *("ai_edge_litert/__init__.py", "ai_edge_litert/interpreter.py", "ai_edge_litert/metrics_*.py"),
    *("ai_edge_litert/_pywrap_litert_interpreter_wrapper.so", "ai_edge_litert/libpywrap_litert_common.so"),
)
_TRY = """
import hashlib, runpy, sys
import ai_edge_litert.interpreter, numpy
runpy.run_path(sys.argv[1], run_name="agent")  # all that the agent imports as it loads
numpy.savez("tried.npz", tried=numpy.arange(3))
assert numpy.load("tried.npz", allow_pickle=False)["tried"].sum() == 3
print(hashlib.sha256(b"").hexdigest()[:8], numpy.__version__)
"""
_TIMEOUT_S = 600.0
_LAYOUT = 1  # raise it when what is kept or where it lies changes: an older runtime is then made anew
_MTIME = 1_600_000_000  # of every file, packed or not: Python's compiled modules count only while it stays


def command(architecture: str) -> str:
    """What to type to have it made."""
    return f"edgeface doctor --install {architecture}"


def folder(architecture: str) -> Path:
    """Where the runtime belongs."""
    return cache_folder() / "devices" / f"runtime-{architecture}"


def find(architecture: str) -> Path | None:
    """The runtime's folder, or None while there is none with these pins."""
    place = folder(architecture)
    manifest = read(place)
    whole = manifest.get("pins") == pins(architecture) and (place / PYTHON).is_file() and archive_of(place).is_file()
    return place if whole else None


def require(architecture: str) -> Path:
    """As `find`.

    Raises:
        MissingToolError: There is none, or its files were altered; the command that makes it is in the message.
    """
    place = find(architecture)
    if place is None:
        raise MissingToolError(
            f"the {architecture} runtime is not installed",
            expected="a self-contained Python with LiteRT",
            where=str(folder(architecture)),
            do=f"Type: {command(architecture)}",
        )
    if wrong := altered(place):
        raise MissingToolError(
            f"{wrong[0]!r} is not as it was made" + (f", nor are {len(wrong) - 1} others" if wrong[1:] else ""),
            expected="the runtime as it was installed",
            where=str(place),
            do=f"Delete that folder, then type: {command(architecture)}",
        )
    return place


def read(place: Path) -> dict[str, Any]:
    """The manifest of a runtime; empty when there is none."""
    try:
        found = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def pins(architecture: str) -> list[str]:
    """What a runtime of this edgeface is made of; one of other pins does not count as installed."""
    return [
        f"layout {_LAYOUT}",
        architecture,
        debian.SUITE,
        *PACKAGES,
        *(f"{name}=={version}" for name, version in WHEELS.items()),
    ]


def archive(architecture: str) -> Path:
    """The installed runtime as one .tar.gz, for pushing: its files without a folder around them.

    Raises:
        MissingToolError: The runtime is not installed.
    """
    return archive_of(require(architecture))


def archive_of(place: Path) -> Path:
    """Where a runtime keeps itself packed."""
    return place / "runtime.tar.gz"


def start(folder: str, architecture: str) -> list[str]:
    """The words before `SCRIPT ARGUMENT…` that start the runtime's Python.

    Python finds its own standard library beside itself; -I keeps the machine's Python settings and packages out.

    Args:
        folder: Where the runtime lies, on the machine that will run it; an absolute path there.
        architecture: "arm64" or "amd64".
    """
    loader = f"{folder}/lib/{LOADERS[architecture]}"
    return [loader, "--inhibit-cache", "--library-path", f"{folder}/lib", f"{folder}/{PYTHON}", "-I", "-B"]


def install(architecture: Architecture, *, trial: Sequence[str] = ()) -> Path:
    """Make the runtime unless it is there; it appears whole or not at all.

    Args:
        architecture: Of the machine that will run it.
        trial: Words before a command that let this machine run it: an emulator and its options. Without them the
            runtime is tried only where it is this machine's own.

    Raises:
        MissingToolError: The packages cannot be fetched, or what was made of them does not start.
        OutputError: The cache folder cannot be written.
    """
    place = find(architecture)
    if place is not None:
        return place
    place = folder(architecture)
    with write_folder(place) as aside, tempfile.TemporaryDirectory(prefix="edgeface-runtime-") as name:
        work = Path(name)
        packages, wheels = work / "packages", work / "wheels"
        packages.mkdir()
        fetched = debian.fetch(PACKAGES, architecture=architecture, folder=packages)
        for package in fetched:
            debian.unpack(package.path, work / "root")
        downloads = [{"name": one.name, "version": one.version, "sha256": one.sha256} for one in fetched]
        for wheel in _fetch_wheels(architecture, wheels):
            project, version = wheel.name.split("-")[:2]
            downloads.append({"name": project, "version": version, "sha256": sha256_file(wheel)})
            shutil.unpack_archive(wheel, work / "site", format="zip")
        _gather(work / "root", work / "site", aside, architecture=architecture)
        if trial or debian.MACHINES.get(platform.machine()) == architecture:
            _try(aside, architecture=architecture, trial=trial, inside=work)
        size_bytes = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
        contents = _digest(aside)
        _pack(aside, archive_of(aside))
        write_json(
            aside / MANIFEST,
            {
                "schema": 1,
                "architecture": architecture,
                "pins": pins(architecture),
                "downloads": downloads,
                "files": contents,
                "size_bytes": size_bytes,
                "archive_bytes": archive_of(aside).stat().st_size,
                "archive_sha256": sha256_file(archive_of(aside)),
            },
        )
    return place


def altered(place: Path) -> list[str]:
    """Files of a runtime that are missing, added or not as they were made; empty for a whole one."""
    manifest = read(place)
    recorded, found = dict(manifest.get("files", {})), _digest(place)
    packed = archive_of(place)
    recorded[packed.name] = manifest.get("archive_sha256", "")
    found[packed.name] = sha256_file(packed) if packed.is_file() else ""
    return sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))


def _digest(place: Path) -> dict[str, str]:
    own = (place / MANIFEST, archive_of(place))
    files = (path for path in sorted(place.rglob("*")) if path.is_file() and path not in own)
    return {path.relative_to(place).as_posix(): sha256_file(path) for path in files}


def _gather(root: Path, site: Path, place: Path, *, architecture: str) -> None:
    """Copy what is needed from the unpacked packages and wheels."""
    triplet = f"{TRIPLETS[architecture]}-linux-gnu"
    for name in (LOADERS[architecture], *_LIBRARIES):
        candidates = (root / "lib" / triplet / name, root / "usr/lib" / triplet / name)
        _copy(next(path for path in candidates if path.exists()), place / "lib" / name)  # links become what they name
    _copy(root / "usr/bin/python3.11", place / PYTHON)
    standard = root / "usr" / _STANDARD
    for path in _files(standard):
        if not _matches(path.relative_to(standard), _STANDARD_DROPS):
            _copy(path, place / _STANDARD / path.relative_to(standard))
    for path in _files(site):
        inside = path.relative_to(site)
        numpy = inside.parts[0] in ("numpy", "numpy.libs") and not _matches(inside, _NUMPY_DROPS)
        if numpy or _matches(inside, (*_LITERT_KEEPS, "*.dist-info/licenses/*", "*.dist-info/METADATA")):
            _copy(path, place / _SITE / inside)
    for path in sorted((root / "usr/share/doc").glob("*/copyright")):
        _copy(path, place / "licences" / path.parent.name)


def _files(place: Path) -> Iterable[Path]:
    # A link out of the package (Debian links some modules to /etc) has no target here.
    return (path for path in sorted(place.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def _matches(name: PurePosixPath | Path, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name.as_posix(), pattern) for pattern in patterns)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) or ".so" in target.name else 0o644)
    os.utime(target, (_MTIME, _MTIME))


def _pack(place: Path, path: Path) -> None:
    """Pack a folder so that the same files give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,  # toybox and busybox read it
    ):
        for file in sorted(place.rglob("*")):
            if file == path:
                continue
            entry = tarfile.TarInfo(file.relative_to(place).as_posix())
            entry.mtime, entry.mode = _MTIME, 0o755
            if file.is_dir():
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
                continue
            entry.size, entry.mode = file.stat().st_size, file.stat().st_mode & 0o777
            with file.open("rb") as content:
                tar.addfile(entry, content)


def _try(place: Path, *, architecture: str, trial: Sequence[str], inside: Path) -> None:
    """Start it; the modules it loads are kept compiled, which halves every later start."""
    words = [word for word in start(str(place), architecture) if word != "-B"]
    command = [*trial, *words, "-c", _TRY, str(AGENT)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={},
            cwd=inside,
        )
        reason = next(iter((done.stderr + done.stdout).strip().splitlines()[-1:]), f"exit status {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if done.returncode == 0 and done.stdout.split() == ["e3b0c442", WHEELS["numpy"]]:
            return
    raise MissingToolError(
        f"the {architecture} runtime was made but does not start ({reason[:300]})",
        expected="a Python that imports NumPy and LiteRT",
        where=" ".join(command[:2]),
        do="Free some memory and type the command again; if it stays so, report it",
    )


def _fetch_wheels(architecture: str, place: Path) -> list[Path]:
    machine = TRIPLETS[architecture]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    tags = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 27, 28)]
    wanted = [f"{name}=={version}" for name, version in WHEELS.items()]
    command = [*pip, *tags, "--python-version=3.11", "--only-binary=:all:", *wanted, "-d", str(place)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return sorted(place.glob("*.whl"))
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), (lines or ["no reason"])[-1])
    raise MissingToolError(
        f"the wheels cannot be had ({reason[:300]})",
        expected=f"a package index that has {' and '.join(wanted)} for {machine}, and pip in this environment",
        where="pip download",
        do="Check the network, then type the command again",
    )
