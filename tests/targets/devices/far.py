"""A job for a device at the far end of a client program, what stands for its agent, and what is left there."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest

from edgeface.errors import MissingToolError
from targets.devices import debian, runtime

# What stands for the agent where only the way there and back is looked at: $1 is the job.
ECHO = 'cat "$1/pictures.npy" > "$1/0.npz" && echo "{}" > "$1/result.json" && echo "one file done"'


def write_job(folder: Path) -> Path:
    """A job of one file, whose name careless quoting would break."""
    folder.mkdir()
    (folder / "pictures.npy").write_bytes(os.urandom(200_000))
    (folder / "a b'c.tflite").write_bytes(b"a model")
    ordered = {"files": [{"file": "a b'c.tflite"}], "pictures": "pictures.npy"}
    (folder / "job.json").write_text(json.dumps(ordered), encoding="utf-8")
    return folder


def stand_in(patch: pytest.MonkeyPatch, folder: Path, script: str, *, runtime_bytes: int = 1000) -> None:
    """Put a shell script in the place of the runtime and the agent."""
    archive = folder / "runtime.tar.gz"
    with archive.open("wb") as raw, gzip.open(raw, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        entry = tarfile.TarInfo("filling")
        entry.size = runtime_bytes
        tar.addfile(entry, io.BytesIO(bytes(runtime_bytes)))
    patch.setattr(runtime, "archive", lambda _: archive)
    patch.setattr(runtime, "start", lambda *_: ["sh", "-c", script])


def install_runtime() -> None:
    """The real runtime of this machine's architecture, in the tests' cache; skips where it cannot be downloaded."""
    try:
        runtime.install("arm64" if debian.native() == "arm64" else "amd64")
    except MissingToolError as error:
        pytest.skip(f"no runtime to push: {error}")


def left_behind(device: Path, *, within_s: float = 10.0) -> list[str]:
    """What lies in a device's temporary folder, once it had time to clean up."""
    deadline = time.monotonic() + within_s
    while (found := sorted(path.name for path in device.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def running(word: str, *, within_s: float = 10.0) -> list[int]:
    """Processes with this word in their command line, once they had time to end."""
    deadline = time.monotonic() + within_s
    while (found := [pid for pid in processes() if word in command_of(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid: int) -> str:
    return read_proc(pid, "cmdline").replace("\0", " ")


def read_proc(pid: int, what: str) -> str:
    try:
        return (Path("/proc") / str(pid) / what).read_text(errors="replace")
    except OSError:
        return ""
