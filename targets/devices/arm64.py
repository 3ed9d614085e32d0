"""The ARM64 kernels without a phone: the agent in qemu's user-mode emulator, on a processor of choice.

What is emulated is arithmetic, instruction by instruction: which kernels a file meets on that processor and what they
compute. Speed is not: nothing is timed here. benchmarks/results/arm64.md holds what was measured.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, Any

import numpy as np

from edgeface.data.pack import cache_folder
from edgeface.errors import DeviceError, MissingToolError, UsageError, did_you_mean
from edgeface.files import sha256_file, write_folder, write_json
from targets.devices import agent, debian, runtime
from targets.devices.device import AGENT, JOB, PICTURES, RESULT, Told

ARCHITECTURE: runtime.Architecture = "arm64"
EMULATOR = "qemu-aarch64-static"
PACKAGE = "qemu-user-static"

# Fewer pictures than this do not make up for the seconds that another start takes.
_LEAST_IN_A_SLICE = 16
_TIMEOUT_S = 3600.0
_CORES = 4


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """A processor that qemu imitates.

    Attributes:
        qemu: Its name there.
        midr: Main ID Register: implementer, variant, part, revision.
        features: What Linux on it lists in /proc/cpuinfo, as far as qemu imitates it.
    """

    qemu: str
    midr: int
    features: tuple[str, ...]


_ARMV8_0 = ("fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
_ARMV8_2 = (
    *("fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid", "asimdrdm"),
    *("lrcpc", "dcpop", "asimddp"),
)
# Parts: Linux, arch/arm64/include/asm/cputype.h. Revisions and features: qemu 7.2, target/arm/cpu64.c, which names the
# Technical Reference Manual of each; a test reads both back inside the emulator.
CPUS = {
    "a53": Cpu(qemu="cortex-a53", midr=0x410FD034, features=_ARMV8_0),
    "a72": Cpu(qemu="cortex-a72", midr=0x410FD083, features=_ARMV8_0),
    "a76": Cpu(qemu="cortex-a76", midr=0x414FD0B1, features=_ARMV8_2),
    "n1": Cpu(qemu="neoverse-n1", midr=0x414FD0C1, features=_ARMV8_2),
}


class Arm64:
    """An emulated ARM64 processor.

    Args:
        cpu: One of CPUS.
        timeout_s: How long a job may take, in seconds.

    Raises:
        UsageError: It is none of CPUS.
    """

    name = "arm64"
    emulated = True

    def __init__(self, cpu: str = "a72", *, timeout_s: float = _TIMEOUT_S) -> None:
        if cpu == "max":
            raise UsageError(
                "--cpu max",
                expected=f"one of {', '.join(CPUS)}",
                where="--on arm64",
                do="Choose one: with SME, which 'max' has, int8 answers come out wrong in qemu 7.2 (docs/devices.md)",
            )
        if cpu not in CPUS:
            raise UsageError(
                f"--cpu {cpu}", expected=f"one of {', '.join(CPUS)}", where="--on arm64", do=did_you_mean(cpu, CPUS)
            )
        self.cpu = CPUS[cpu]
        self._timeout_s = timeout_s

    @property
    def detail(self) -> str:
        version = _read(_folder()).get("version", "").partition("+")[0].rpartition(":")[2]
        return f"{self.cpu.qemu} under qemu-user {version}".strip()

    def run(self, job: Path, *, told: Told) -> None:
        """See Device.run. The pictures are shared out among processes, one for each core of this machine."""
        place, emulator = require()
        wanted = json.loads((job / JOB).read_text(encoding="utf-8"))
        pictures = np.load(job / wanted["pictures"], allow_pickle=False)
        cores = len(os.sched_getaffinity(0))
        shares = max(1, min(cores, len(pictures) // _LEAST_IN_A_SLICE))
        with tempfile.TemporaryDirectory(prefix="edgeface-arm64-") as name:
            work = Path(name)
            write_system(work / "system", self.cpu)
            slices = []
            for number, share in enumerate(np.array_split(pictures, shares)):
                slices.append(work / f"slice{number}")
                _write_slice(job, slices[-1], wanted, share)
            plural = "es" if shares > 1 else ""
            told(f"{len(pictures)} pictures on {self.detail}, in {shares} process{plural}")
            command = [str(emulator), "-cpu", self.cpu.qemu, "-L", str(work / "system")]
            command += [*runtime.start(str(place), ARCHITECTURE), str(AGENT)]
            deadline, stop = time.monotonic() + self._timeout_s, Event()

            def one(part: Path) -> None:
                try:
                    self._start([*command, str(part)], inside=part, deadline=deadline, stop=stop)
                except BaseException:
                    stop.set()
                    raise

            with ThreadPoolExecutor(max_workers=shares) as pool:
                waiting = [pool.submit(one, part) for part in slices]
                try:
                    for future in waiting:
                        future.result()
                except BaseException:
                    stop.set()
                    raise
            self._merge(slices, job)

    def _start(self, command: Sequence[str], *, inside: Path, deadline: float, stop: Event) -> None:
        """Run one process to its end, or end it."""
        with tempfile.TemporaryFile() as log:
            # Nothing of this environment is meant for the guest; one thread, where NumPy would start one a core.
            environment = {"OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(inside)}
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=inside
            )
            try:
                while process.poll() is None:
                    if stop.wait(0.05):
                        return
                    if time.monotonic() > deadline:
                        raise self._lost(f"no answer within {self._timeout_s:.0f} s", log)
            finally:
                process.kill()
                process.wait()
            if process.returncode != 0 or not (inside / RESULT).is_file():
                code = process.returncode
                raise self._lost(f"the agent ended with {'signal' if code < 0 else 'exit status'} {abs(code)}", log)

    def _lost(self, found: str, log: IO[bytes]) -> DeviceError:
        log.seek(0)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        words = f": {' '.join(lines[-2:])[-400:]}" if lines else ""
        return DeviceError(
            f"{found}{words}",
            expected="an agent that runs to its end",
            where=f"{self.name} ({self.detail})",
            do="Try the file on this machine first: edgeface check BUNDLE --on host",
        )

    def _merge(self, slices: Sequence[Path], job: Path) -> None:
        """Put the answers of the slices one after the other; the result comes last."""
        results = [json.loads((part / RESULT).read_text(encoding="utf-8")) for part in slices]
        merged = dict(results[0], files=[])
        for number, entry in enumerate(results[0]["files"]):
            entries = [result["files"][number] for result in results]
            fault = next((one for one in entries if one["error"]), None)
            if fault is None and any(one[key] != entry[key] for one in entries for key in ("sha256", "outputs")):
                fault = dict(entry, error="its processes do not agree on what the file is")
            if fault is not None:
                merged["files"].append(dict(fault, answers="", answers_sha256=""))
                continue
            answers = [_answers(part, one) for part, one in zip(slices, entries, strict=True)]
            path = job / f"{number}.npz"
            together = {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}
            agent.save(path, together)
            merged["files"].append(dict(entry, answers=path.name, answers_sha256=sha256_file(path), latency=None))
        write_json(job / RESULT, merged)


def install() -> Path:
    """Make the ARM64 runtime and fetch the emulator, unless they are there; see runtime.install.

    Returns:
        The runtime's folder.
    """
    place = _folder()
    if find_emulator() is None:
        with write_folder(place) as aside, tempfile.TemporaryDirectory(prefix="edgeface-qemu-") as name:
            work = Path(name)
            (fetched,) = debian.fetch([PACKAGE], architecture=debian.native(), folder=work)
            debian.unpack(fetched.path, work / "root")
            shutil.copy(work / "root/usr/bin" / EMULATOR, aside / EMULATOR)
            shutil.copy(work / "root/usr/share/doc" / PACKAGE / "copyright", aside / "copyright")
            write_json(
                aside / _MANIFEST,
                {"schema": 1, "name": PACKAGE, "version": fetched.version, "sha256": fetched.sha256, "pins": _pins()},
            )
    with tempfile.TemporaryDirectory(prefix="edgeface-arm64-") as name:
        write_system(Path(name), CPUS["a72"])
        trial = [str(place / EMULATOR), "-cpu", CPUS["a72"].qemu, "-L", name]
        return runtime.install(ARCHITECTURE, trial=trial)


def require() -> tuple[Path, Path]:
    """The runtime's folder and the emulator.

    Raises:
        MissingToolError: One is not there; the command that makes both is in the message.
    """
    place, emulator = runtime.require(ARCHITECTURE), find_emulator()
    if emulator is None:
        raise MissingToolError(
            "the ARM64 emulator is not installed",
            expected=EMULATOR,
            where=str(_folder()),
            do=f"Type: {runtime.command(ARCHITECTURE)}",
        )
    return place, emulator


def find_emulator() -> Path | None:
    """The emulator, or None while there is none of the release that was measured."""
    path = _folder() / EMULATOR
    return path if _read(_folder()).get("pins") == _pins() and os.access(path, os.X_OK) else None


def write_system(folder: Path, cpu: Cpu) -> None:
    """Write the files in which Linux on such a processor describes it: kernels are chosen by them.

    Without them the emulator would show those of the machine that it runs on.
    """
    fields = {
        "BogoMIPS": "50.00",
        "Features": " ".join(cpu.features),
        "CPU implementer": f"0x{cpu.midr >> 24:02x}",
        "CPU architecture": "8",
        "CPU variant": f"0x{cpu.midr >> 20 & 0xF:x}",
        "CPU part": f"0x{cpu.midr >> 4 & 0xFFF:03x}",
        "CPU revision": f"{cpu.midr & 0xF}",
    }
    described = "".join(f"{name}\t: {value}\n" for name, value in fields.items())
    listing = folder / "sys/devices/system/cpu"
    listing.mkdir(parents=True)
    (folder / "proc").mkdir()
    text = "\n".join(f"processor\t: {core}\n{described}" for core in range(_CORES))
    (folder / "proc/cpuinfo").write_text(text, encoding="ascii")
    for name in ("possible", "present", "online"):
        (listing / name).write_text(f"0-{_CORES - 1}\n", encoding="ascii")
    (listing / "kernel_max").write_text(f"{_CORES - 1}\n", encoding="ascii")


_MANIFEST = "emulator.json"


def _folder() -> Path:
    return cache_folder() / "devices" / "qemu"


def _pins() -> list[str]:
    return [PACKAGE, debian.SUITE, platform.machine()]


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_slice(job: Path, folder: Path, wanted: Mapping[str, Any], pictures: np.ndarray[Any, Any]) -> None:
    """A job of its own for some of the pictures."""
    folder.mkdir()
    np.save(folder / PICTURES, pictures, allow_pickle=False)
    for entry in wanted["files"]:
        link = folder / entry["file"]
        if not link.exists():  # one file may be asked for on several runtimes
            link.symlink_to((job / entry["file"]).resolve())
    own = {"pictures": PICTURES, "pictures_sha256": sha256_file(folder / PICTURES), "timed_runs": 0}
    write_json(folder / JOB, {**wanted, **own})


def _answers(folder: Path, entry: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(folder / f"{Path(entry['answers']).name}", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
