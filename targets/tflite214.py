"""tflite-runtime 2.14, the runtime of phones that were not updated: an environment of its own, and a process in it.

It needs NumPy 1 and Python 3.11, so it cannot live beside the rest. `install` makes the environment once, in the user's
cache folder; `Worker` runs a file there, the file loaded once, and talks to it over a pipe (targets/interpreter.py).

Measured on every student: it leaves int8 to its builtin kernels, which answer as LiteRT's builtin kernels do, bit for
bit. Dynamic-range FULLY_CONNECTED with more than one weight scale is silently wrong there, and refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from edgeface.data.pack import cache_folder
from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from targets import interpreter
from targets.flatbuffer import Flatbuffer
from targets.interpreter import from_npy, read_frame, to_npy, write_frame

NAME = "tflite-2.14"
PACKAGES = ("tflite-runtime==2.14.0", "numpy==1.26.4")
BUILTIN = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"  # the resolver without XNNPACK
DO = f"edgeface doctor --install {NAME}"

_MARK = "edgeface.json"  # written last: an environment without it is not whole
_INSTALL_S = 600.0


def folder() -> Path:
    """Where the environment belongs."""
    return cache_folder() / NAME


def find() -> Path | None:
    """The environment's folder, or None while there is none with these pins."""
    mark = folder() / _MARK
    try:
        whole = json.loads(mark.read_text(encoding="utf-8")) == list(PACKAGES)
    except (OSError, ValueError):
        return None
    return folder() if whole and _python(folder()).exists() else None


def install() -> Path:
    """Make the environment unless it is there; it appears whole or not at all.

    Raises:
        MissingToolError: There is no Python 3.11 on an x86-64 or ARM64 Linux or Mac, or the packages cannot be fetched.
    """
    found = find()
    if found is not None:
        return found
    base = _python_3_11()
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{NAME}.", dir=target.parent))
    try:
        _run([base, "-m", "venv", str(aside)])
        pip = [str(_python(aside)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        _run([*pip, "--only-binary=:all:", *PACKAGES])
        _run([str(_python(aside)), "-c", "import tflite_runtime.interpreter"])
        (aside / _MARK).write_text(json.dumps(PACKAGES), encoding="utf-8")
        if target.exists():  # an earlier one with other pins, or another process's that was quicker
            if find() is not None:
                return target
            shutil.rmtree(target)
        with contextlib.suppress(OSError):  # another process's came between
            aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    made = find()
    if made is None:
        raise MissingToolError("the environment was not made", expected="a folder to write to", where=str(target))
    return made


class Worker:
    """A TFLite file in tflite-runtime 2.14, in a process of its own.

    Args:
        path: The file.
        threads: CPU threads.
        resolver: A name of its OpResolverType; AUTO is the default, with XNNPACK.

    Attributes:
        description: See interpreter.describe.
    """

    def __init__(self, path: Path, *, threads: int, resolver: str = "AUTO") -> None:
        environment = find()
        if environment is None:
            raise MissingToolError(
                "tflite-runtime 2.14 is not installed",
                expected="its environment",
                where=str(folder()),
                do=f"Type: {DO}",
            )
        _refuse_what_it_gets_wrong(path)
        self._path = path
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [str(_python(environment)), "-I", interpreter.__file__, str(path), str(threads), resolver]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=_clean_environment()
        )
        self._end = weakref.finalize(self, _end, self._process, self._errors)
        self.description: dict[str, Any] = json.loads(self._answer())

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each sample of a batch: output name to (B, …).

        Raises:
            ModelError: The process has died; its last words are in it.
        """
        self._ask(b"B" + to_npy(batch))
        return {name: from_npy(self._answer()) for name in self.description["outputs"]}

    def prepare(self, sample: NDArray[Any]) -> Callable[[], None]:
        """What to call to run one sample; the pipe adds some tens of microseconds to it."""
        self._ask(b"P" + to_npy(sample))
        self._answer()

        def once() -> None:
            self._ask(b"I")
            self._answer()

        return once

    def close(self) -> None:
        """End the process; it also ends with this object."""
        self._end()

    def _ask(self, request: bytes) -> None:
        assert self._process.stdin is not None
        # A dead process is reported where its answer is missing.
        with contextlib.suppress(BrokenPipeError, ValueError):
            write_frame(self._process.stdin, request)  # type: ignore[arg-type]

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        found = None if self._process.stdout.closed else read_frame(self._process.stdout)  # type: ignore[arg-type]
        if found is not None:
            return found
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        code = self._process.wait()
        words = ""
        if not self._errors.closed:
            self._errors.seek(0)
            lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
            lines = [line for line in lines if line and not line.startswith("INFO:")]
            words = f": {' '.join(lines[-2:])[-400:]}" if lines else ""
        ended = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise ModelError(
            f"tflite-runtime 2.14 ended with {ended}{words}",
            expected="a TFLite file that this runtime knows every operation of",
            where=str(self._path),
            do="Run it in another runtime: tflite-xnnpack, tflite-builtin or tensorflow",
        )


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


def _refuse_what_it_gets_wrong(path: Path) -> None:
    """Its dynamic-range FULLY_CONNECTED reads one weight scale and drops the others, without a word.

    Raises:
        UnsupportedError: The file has one.
    """
    file = Flatbuffer(path.read_bytes())
    for operator in file.operators:
        if file.kind(operator) != "FULLY_CONNECTED":
            continue
        activation, weight = (int(index) for index in operator.inputs[:2])
        if (file.dtype(activation), file.dtype(weight)) == ("FLOAT32", "INT8") and len(file.scales(weight)) > 1:
            raise UnsupportedError(
                f"layer {file.name(weight)!r} is dynamic-range FULLY_CONNECTED with {len(file.scales(weight))} scales",
                expected="one scale: tflite-runtime 2.14 would silently answer wrong numbers",
                where=str(path),
                do="Build the file with edgeface, or quantize its fully connected layers per tensor",
            )


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _python_3_11() -> str:
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    found = shutil.which("python3.11")
    if found is not None:
        return found
    raise MissingToolError(
        f"Python {platform.python_version()}",
        expected="a python3.11 on the PATH: tflite-runtime 2.14 was built for no later one",
        where=f"installing {NAME}",
        do="Install Python 3.11, or do without this runtime",
    )


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INSTALL_S,
            check=False,
            env=_clean_environment(),
        )
        lines = [line for line in (done.stderr + done.stdout).strip().splitlines() if line.strip()]
        reason = lines[-1].strip()[-300:] if lines else f"exit status {done.returncode}"
        if done.returncode == 0:
            return
    except subprocess.TimeoutExpired:
        reason = f"not done within {_INSTALL_S:.0f} s"
    except OSError as error:
        reason = str(error)
    raise MissingToolError(
        f"{NAME} cannot be installed ({reason})",
        expected=f"a package index that has {' and '.join(PACKAGES)} for {platform.machine()}",
        where=" ".join(command[:4]),
        do=f"Check the network, then type: {DO}",
    )


def _clean_environment() -> dict[str, str]:
    """Nothing of the calling environment may lead Python into its packages."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
