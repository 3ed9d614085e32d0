"""A job: what is sent to a device, and what is believed of what it sends back.

Nothing a device sends is taken on trust. The nonce tells this job's result from an earlier one's, the digest of the
bytes that were loaded tells the file, types, scales and shapes must be the file's own, the answers must be those the
result speaks of, and only plain files inside the job are opened, within limits known beforehand.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import secrets
import shutil
import stat
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import BudgetError
from edgeface.evaluate import Outputs
from edgeface.files import is_plain_name, sha256_file
from edgeface.specs import ModelSpec
from targets.devices.agent import SCHEMA
from targets.devices.device import INPUTS, JOB, PICTURES, RESULT, Device
from targets.foreign import require_outputs, require_pictures
from targets.litert import open_engine
from targets.protocol import Grids

# Names that mean nothing to a shell, a client program or a file system, whatever the file was called here.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.tflite")

RESULT_LIMIT = 1 << 20  # bytes of result.json
ROOM = 1 << 16  # bytes an answer file may have beyond its values: names, headers, the archive's directory


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What an output of a file is.

    Attributes:
        dtype: NumPy's name of its type.
        shape: Of one sample.
        scale: Of its grid; 0 for float outputs.
        zero_point: Of its grid.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file to run on a device.

    Attributes:
        path: The .tflite file, known to be whole.
        runtime: One of device.AGENT_RUNTIMES.
        slots: Output name to what it is, as this machine reads the file.
        sha256: Of the file.
    """

    path: Path
    runtime: str
    slots: Mapping[str, Slot]
    sha256: str

    @property
    def name(self) -> str:
        """What the file is called on the device."""
        return self.path.name if PLAIN.fullmatch(self.path.name) else f"model-{self.sha256[:12]}.tflite"

    @property
    def grids(self) -> Grids:
        """Scale and zero point of each integer output that has them."""
        return {name: (slot.scale, slot.zero_point) for name, slot in self.slots.items() if slot.scale}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a device answered for one file.

    Attributes:
        outputs: Output name to (N, *shape), as they leave the file; empty when `fault` is set.
        latency: median_ms, p90_ms, p99_ms, runs and load_ms, or None when nothing was timed.
        fault: What cannot be believed, or why the file could not be run there; "" when all is well.
    """

    outputs: Mapping[str, NDArray[Any]]
    latency: Mapping[str, float] | None
    fault: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came back from a device.

    Attributes:
        machine: What it says of itself.
        versions: Of what computed there.
        answers: One for each subject, in their order.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    answers: tuple[Answers, ...]


def subject(path: Path, *, runtime: str) -> Subject:
    """A file to run, with what this machine reads in it.

    Raises:
        ModelError: It is not a file that LiteRT can run.
        MissingToolError: LiteRT is not installed here.
    """
    outputs = open_engine(path, runtime=runtime, threads=1).description["outputs"]
    slots = {
        name: Slot(
            dtype=slot["dtype"],
            # Of others' files not every output leads with the batch.
            shape=tuple(slot["shape"][1:] if slot["shape"][:1] == [1] else slot["shape"]),
            scale=slot["quantization"][0],
            zero_point=slot["quantization"][1],
        )
        for name, slot in outputs.items()
    }
    return Subject(path=path, runtime=runtime, slots=slots, sha256=sha256_file(path))


def run_job(
    device: Device,
    subjects: Sequence[Subject],
    *,
    images: NDArray[Any],
    spec: ModelSpec | None,
    threads: int = 1,
    timed_runs: int = 0,
    told: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run files on a device.

    Args:
        device: Where.
        subjects: What; files of one name must be one file.
        images: (N, H, W, 3) pictures, each run through each file; without a spec (N, …) of the files' own input shape
            and type.
        spec: How a file that takes float values standardizes pictures; None feeds `images` as they are.
        threads: CPU threads there.
        timed_runs: Runs of one picture to time for each file; 0 times nothing, and an emulated device never does.
        told: Called with lines for whoever waits.

    Raises:
        BudgetError: The result as a whole cannot be believed: another job's, not readable, or without these files.
        MissingToolError: As Device.run.
    """
    with tempfile.TemporaryDirectory(prefix="edgeface-job-") as name:
        folder = Path(name)
        nonce = secrets.token_hex(16)
        for each in {each.path: each for each in subjects}.values():
            shutil.copyfile(each.path, folder / each.name)
        given = folder / (INPUTS if spec is None else PICTURES)
        np.save(given, np.ascontiguousarray(images), allow_pickle=False)
        job = {
            "schema": SCHEMA,
            "nonce": nonce,
            "files": [
                {"file": each.name, "sha256": each.sha256, "runtime": each.runtime, "threads": threads}
                for each in subjects
            ],
            "pictures": given.name,
            "pictures_sha256": sha256_file(given),
            "standardize": None if spec is None else {"mean": list(spec.mean), "std": list(spec.std)},
            "timed_runs": 0 if device.emulated else timed_runs,
        }
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        device.run(folder, told=told)
        return read_report(folder, subjects, nonce=nonce, count=len(images), on=device.name)


def read_report(folder: Path, subjects: Sequence[Subject], *, nonce: str, count: int, on: str) -> Report:
    """What a device left in a job folder, checked.

    Args:
        folder: The job.
        subjects: What it was asked to run.
        nonce: Of this job.
        count: Pictures it was given.
        on: The device's name, for errors.

    Raises:
        BudgetError: See `run_job`.
    """
    where = f"{RESULT} from {on}"
    result = _result(folder, where=where)
    if result.get("nonce") != nonce:
        raise BudgetError(
            f"the nonce {str(result.get('nonce'))[:40]!r}: a stale result",
            expected=f"{nonce!r}, which this job was sent with",
            where=where,
            do="The device answered with an earlier job's result; nothing of it was used",
        )
    entries = result.get("files")
    if result.get("schema") != SCHEMA or not isinstance(entries, list) or len(entries) != len(subjects):
        found = f"{len(entries)} files" if isinstance(entries, list) else f"files {str(entries)[:40]!r}"
        raise BudgetError(
            f"schema {str(result.get('schema'))[:20]!r} and {found}",
            expected=f"schema {SCHEMA} and the {len(subjects)} files of the job",
            where=where,
            do="Copy the agent to the device again",
        )
    names = {each.sha256: each.name for each in subjects}
    return Report(
        machine=_plain(result.get("machine")),
        versions=_plain(result.get("versions")),
        answers=tuple(
            _answers(folder, entry, each, count=count, names=names)
            for entry, each in zip(entries, subjects, strict=True)
        ),
    )


def _result(folder: Path, *, where: str) -> dict[str, Any]:
    path = folder / RESULT
    fault = _not_a_file(path)
    size = 0 if fault else path.stat().st_size
    if size > RESULT_LIMIT:
        fault = f"{size:,} bytes"
    if not fault:
        try:
            result = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            fault = f"not JSON, or cut short ({error})"
        else:
            if isinstance(result, dict):
                return result
            fault = f"a JSON {type(result).__name__}"
    raise BudgetError(
        fault, expected=f"a JSON object of at most {RESULT_LIMIT:,} bytes", where=where, do="Run the check again"
    )


def _answers(folder: Path, entry: object, wanted: Subject, *, count: int, names: Mapping[str, str]) -> Answers:
    """One file's answers, or the reason why they cannot be believed."""
    try:
        if not isinstance(entry, dict):
            raise _UntrueError(f"its entry is {str(entry)[:40]!r}, not an object")
        _same_file(entry, wanted, names=names)
        if entry.get("error"):
            raise _UntrueError(f"it could not be run there: {_words(entry['error'], limit=500)}")
        _same_slots(entry, wanted)
        outputs = _read_outputs(folder, entry, wanted, count=count)
        return Answers(outputs=outputs, latency=_latency(entry.get("latency")), fault="")
    except _UntrueError as fault:
        return Answers(outputs={}, latency=None, fault=str(fault))


class _UntrueError(Exception):
    """Why one file's answers are not believed."""


def _same_file(entry: Mapping[str, Any], wanted: Subject, *, names: Mapping[str, str]) -> None:
    if (entry.get("file"), entry.get("runtime")) != (wanted.name, wanted.runtime):
        raise _UntrueError(f"in its place stands {_words(entry.get('file'))!r} on {_words(entry.get('runtime'))!r}")
    digest = entry.get("sha256")
    if digest != wanted.sha256 and not (entry.get("error") and not digest):
        whose = names.get(str(digest), "a file that was not sent")
        raise _UntrueError(
            f"the device loaded another model: sha256 {_words(digest, limit=12)}… ({whose}), not {wanted.sha256[:12]}…"
        )


def _same_slots(entry: Mapping[str, Any], wanted: Subject) -> None:
    told = entry.get("outputs")
    if not isinstance(told, dict) or not all(isinstance(slot, dict) for slot in told.values()):
        raise _UntrueError(f"its outputs are {str(told)[:80]!r}")
    own = {name: (slot.dtype, slot.scale, slot.zero_point) for name, slot in wanted.slots.items()}
    for name, expected in own.items():
        if name not in told:
            raise _UntrueError(f"output {name!r} is missing; there are {', '.join(sorted(map(repr, told))) or 'none'}")
        found = tuple(told[name].get(key) for key in ("dtype", "scale", "zero_point"))
        if found != expected:
            others = [other for other, slot in own.items() if other != name and slot == found]
            like = f", which are those of {others[0]!r}" if others else ""
            raise _UntrueError(
                f"output {name!r} has type, scale and zero point {found!r}{like}; the file has {expected!r}"
            )


def _read_outputs(folder: Path, entry: Mapping[str, Any], wanted: Subject, *, count: int) -> dict[str, NDArray[Any]]:
    name = entry.get("answers")
    if not isinstance(name, str) or not is_plain_name(name):
        raise _UntrueError(f"its answers are said to lie in {str(name)[:80]!r}, which is no plain file name")
    path = folder / name
    if fault := _not_a_file(path):
        raise _UntrueError(f"its answers {name!r}: {fault}")
    whole = sum(count * math.prod(slot.shape) * np.dtype(slot.dtype).itemsize for slot in wanted.slots.values())
    if path.stat().st_size > whole + ROOM:
        raise _UntrueError(f"its answers {name!r} have {path.stat().st_size:,} bytes where {whole:,} are due")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.get("answers_sha256"):
        raise _UntrueError(
            f"its answers {name!r} are not those the result speaks of: they were altered or are another job's"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {output: _read_output(archive, output, slot, count=count) for output, slot in wanted.slots.items()}
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, EOFError, ValueError) as error:
        raise _UntrueError(f"its answers {name!r} cannot be read ({error})") from error


def _read_output(archive: zipfile.ZipFile, name: str, slot: Slot, *, count: int) -> NDArray[Any]:
    """One array; its header is compared before any memory is set aside for what it promises."""
    expected = (np.dtype(slot.dtype), (count, *slot.shape))
    try:
        with archive.open(f"{name}.npy") as stream:
            content = stream.read(count * math.prod(slot.shape) * expected[0].itemsize + ROOM)
    except KeyError:
        held = ", ".join(sorted(repr(member.removesuffix(".npy")) for member in archive.namelist())) or "none"
        raise _UntrueError(f"output {name!r} is missing from its answers; there are {held}") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _UntrueError(f"output {name!r} cannot be read ({error})") from error
    try:
        head = io.BytesIO(content)
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(head)
        if (dtype, shape) == expected:
            array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
            return array
    except (ValueError, EOFError, TypeError, SyntaxError, tokenize.TokenError, RecursionError) as error:
        raise _UntrueError(f"output {name!r} is no array ({' '.join(str(error).split())[:200]})") from error
    if dtype == expected[0] and shape[1:] == expected[1][1:]:
        raise _UntrueError(f"output {name!r} has {shape[0]} rows for {count} pictures")
    raise _UntrueError(f"output {name!r} is {dtype} {shape} where {expected[0]} {expected[1]} was expected")


def _not_a_file(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return "there is none"
    return "" if stat.S_ISREG(mode) else "not a plain file"


def _latency(told: object) -> dict[str, float] | None:
    if told is None:
        return None
    keys = ("median_ms", "p90_ms", "p99_ms", "runs", "load_ms")
    values = [told.get(key) for key in keys] if isinstance(told, dict) else []
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(keys) or not all(0 < value < 1e12 for value in numbers):
        raise _UntrueError(f"its latency is {str(told)[:120]!r}")
    return dict(zip(keys, numbers, strict=True))


def _plain(told: object) -> dict[str, Any]:
    """What a device says of itself, as far as it is text, numbers and lists of text."""
    if not isinstance(told, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in list(told.items())[:20]:
        if isinstance(value, str):
            found[_words(key)] = _words(value)
        elif isinstance(value, list):
            found[_words(key)] = [_words(item) for item in value[:40]]
        elif isinstance(value, int | float):
            found[_words(key)] = value
    return found


def _words(told: object, *, limit: int = 100) -> str:
    """Text of a device, fit for a terminal: cut, and without what would move its cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in str(told)[:limit])


class DeviceRunner:
    """A .tflite file on a device, as a Runner: every call is one job, so call it with many pictures.

    Attributes:
        runtime: What runs it and where: "tflite-xnnpack on ssh:pi@board"; an emulated processor is named.

    Args:
        device: Where.
        file: The file, known to be whole.
        spec: Its input and outputs.
        precision: What its manifest calls it.
        runtime: One of device.AGENT_RUNTIMES.
        threads: CPU threads there.
    """

    def __init__(
        self,
        device: Device,
        file: Path,
        *,
        spec: ModelSpec,
        precision: str,
        runtime: str = "tflite-xnnpack",
        threads: int = 1,
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.runtime = f"{runtime} on {device.name}" + (f" ({device.detail})" if device.emulated else "")
        self.threads = threads
        self._device = device
        self._subject = subject(file, runtime=runtime)
        require_outputs(spec, self._subject.slots, where=str(file))

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run.

        Raises:
            BudgetError: What the device sent cannot be believed.
            MissingToolError: As Device.run.
        """
        file = self._subject.path.name
        require_pictures(batch, self.spec.input_px, where=file)
        report = run_job(self._device, [self._subject], images=batch, spec=self.spec, threads=self.threads)
        (answers,) = report.answers
        if answers.fault:
            raise BudgetError(answers.fault, expected="the answers of that file", where=f"{file}, {self.runtime}")
        return dequantize(answers.outputs, spec=self.spec, grids=self._subject.grids)


def dequantize(codes: Mapping[str, NDArray[Any]], *, spec: ModelSpec, grids: Grids) -> Outputs:
    """What a file answered as the numbers a model's outputs are: output name to (N, *shape)."""
    values: Outputs = {}
    for output in spec.outputs:
        raw = codes[output.name]
        if raw.dtype.kind in "iu":
            scale, zero_point = grids[output.name]
            raw = (raw.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        values[output.name] = raw.reshape(len(raw), *output.shape)
    return values
