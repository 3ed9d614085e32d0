"""What runners of every format share: opening files of anyone, and refusing what does not fit, in one set of words."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeface import limits
from edgeface.errors import ModelError, UnsupportedError
from edgeface.memory import limit_error
from edgeface.specs import ModelSpec, OutputSpec
from edgeface.tasks import TASKS, Kind
from targets.protocol import Port

# What Python, C++, the system and torch say when memory is refused.
_NO_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "can't allocate memory")

_ROOT = str(Path(__file__).resolve().parent.parent)  # where `targets` is imported from

# Set by the process itself before it loads anything: a hook between fork and exec is not safe where there are threads.
_CONFINED = """
import sys
sys.path.append(sys.argv[4])
try:
    import resource
except ImportError:  # Windows has no such limits; time is limited from outside
    resource = None
if resource is not None:
    for kind, most in ((resource.RLIMIT_AS, int(sys.argv[2])), (resource.RLIMIT_CPU, int(sys.argv[3]))):
        allowed = resource.getrlimit(kind)[1]  # nobody may raise a limit that is lower already
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


def try_apart(program: str, path: Path, *, runtime: str, expected: str) -> None:
    """Load and run a file in a process of its own, which a broken one may take down, with limits on time and memory.

    Args:
        program: Python that does so with the path in sys.argv[1].
        path: The file.
        runtime: What runs it, for the error.
        expected: What the file should be, for the error.

    Raises:
        ModelError: It could not be run, or not within `limits.TRIAL_S` and `limits.TRIAL_MEMORY_BYTES`.
        ResourceError: This process may have less memory (ulimit -v), and that did not suffice.
    """
    seconds, memory = limits.TRIAL_S, limits.TRIAL_MEMORY_BYTES
    # -P: else a stray openvino.py in the folder of the user would be the runtime.
    program = _CONFINED + program
    argv = [sys.executable, "-P", "-c", program, str(path), str(memory), str(math.ceil(seconds)), _ROOT]
    with tempfile.TemporaryFile() as words:
        # A session of its own, so that whatever it starts ends with it.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words, start_new_session=True
        )
        late = verbose = False
        end = time.monotonic() + seconds
        try:
            while process.poll() is None and not (late or verbose):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=min(0.2, max(0.0, end - time.monotonic())))
                late = time.monotonic() >= end
                verbose = os.fstat(words.fileno()).st_size > limits.TRIAL_WORDS_BYTES
        finally:
            if process.poll() is None:
                _end(process)
        words.seek(max(0, os.fstat(words.fileno()).st_size - 4096))
        said = words.read().decode("utf-8", errors="replace")
    if process.returncode == 0:
        return
    if late or process.returncode == -getattr(signal, "SIGXCPU", 0):
        found, do = f"did not run in {runtime} within {seconds:g} s", "Do not ship it"
    elif verbose:
        found, do = f"{runtime} does not stop writing messages about it", "Do not ship it"
    else:
        short = limit_error(said)
        if short is not None:
            raise short
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = lines[-1][-300:] if lines and process.returncode > 0 else f"ended by signal {-process.returncode}"
        out_of_memory = any(word in said for word in _NO_MEMORY)
        reason = f"it wants more than {memory:,} bytes of memory" if out_of_memory else _printable(reason)
        found, do = f"{runtime} cannot run it ({reason})", "Copy or build it again"
    raise ModelError(found, expected=expected, where=str(path), do=do)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # Windows, or it ended meanwhile
        process.kill()
    process.wait()


def _printable(text: str) -> str:
    """Text of a stranger, fit for a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def minimal_spec(name: str, *, side: int, outputs: Mapping[str, tuple[int, ...]]) -> ModelSpec:
    """What can be known of a file without a manifest: the outputs that are named after a task and have its size.

    Args:
        name: Of the model.
        side: Of its picture; 0 when it takes none.
        outputs: Output name to shape.
    """
    found = []
    for output, shape in sorted(outputs.items()):
        task = TASKS.get(output)
        # Landmarks are offsets from a mean shape that only a manifest tells.
        if task is None or task.kind is Kind.LANDMARKS:
            continue
        if math.prod(shape) == math.prod(task.output_shape):
            found.append(OutputSpec(name=output, task=output, shape=task.output_shape, classes=task.classes))
    return ModelSpec(name=name, input_px=side, outputs=tuple(found))


def require_outputs(spec: ModelSpec, names: Iterable[str], *, where: str) -> None:
    """Refuse a file that lacks an output of its spec."""
    held = set(names)
    missing = [output.name for output in spec.outputs if output.name not in held]
    if missing:
        raise ModelError(f"outputs {sorted(held)}", expected=f"{missing} among them", where=where, do="Build it again")


def require_pictures(batch: NDArray[Any], side: int, *, where: str) -> None:
    """Refuse a batch that is not (B, side, side, 3) uint8."""
    if batch.dtype != np.uint8 or batch.shape[1:] != (side, side, 3):
        raise ModelError(f"pictures {batch.dtype} {batch.shape}", expected=f"uint8 (B, {side}, {side}, 3)", where=where)


def takes_pictures(port: Port) -> bool:
    """Whether an input is a uint8 picture as edgeface hands them out: (1, H, H, 3)."""
    shape = port.shape
    return port.dtype == "uint8" and len(shape) == 4 and shape[3] == 3 and shape[1] is not None and shape[1] == shape[2]


def takes_no_picture(found: str, *, where: str) -> UnsupportedError:
    """The error for a file whose input is not a uint8 picture, so that pictures cannot be run through it."""
    return UnsupportedError(
        f"an input {found}",
        expected="uint8 (1, H, H, 3): how a picture becomes other numbers is not written in the file",
        where=where,
        do="Say so in a description (--spec), or time it alone: edgeface bench",
    )


def standardize(batch: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """(B, H, W, 3) pictures as the values a network computes with: (x − mean)/std per channel."""
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    return (batch.astype(np.float32) - mean) / std


def random_input(shape: tuple[int, ...], dtype: DTypeLike, *, seed: int) -> NDArray[Any]:
    """Random values of a type's whole range for integers, −1 to 1 for floats."""
    generator, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return generator.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    return generator.uniform(-1.0, 1.0, shape).astype(kind)
