"""Runs a job on the device it was copied to, and writes down what came out.

    python agent.py JOB

It needs Python 3.9 or newer, NumPy and ai-edge-litert, and nothing else of edgeface. It judges nothing: result.json
says which bytes it loaded, what the outputs are and where the answers lie; who wrote the job judges them.

JOB/job.json     {"schema", "nonce", "files": [{"file", "sha256", "runtime", "threads"}], "pictures",
                 "pictures_sha256", "standardize": {"mean", "std"} or null, "timed_runs"}
JOB/pictures.npy (N, H, W, 3) uint8, which files of a float input take standardized; with "standardize" null the array,
                 then called inputs.npy, is (N, …) of the files' own input shape and type, and is fed as it is
JOB/result.json  {"schema", "nonce", "machine", "versions", "files": [{"file", "sha256", "runtime", "outputs",
                 "answers", "answers_sha256", "latency", "error"}]}, written last, aside, and renamed
JOB/0.npz, …     for the file of that place: output name to (N, *shape), as it leaves the file
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = 1
WARM_UP = 10  # runs before the clock counts
RESOLVERS = {"tflite-xnnpack": "AUTO", "tflite-builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}

# Words of /proc/cpuinfo that decide which integer kernels run.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve", "neon")
PARTS = {  # of ARM's own cores: Main ID Register, bits 4 to 15
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd0d": "Cortex-A77",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
}


def main(folder: Path) -> None:
    """Run every file of a job. A file that cannot be run says so in its `error`; the others are run all the same."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job["schema"] != SCHEMA:
        raise SystemExit(f"a job of schema {job['schema']!r}; this agent knows {SCHEMA}")
    content = (folder / job["pictures"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != job["pictures_sha256"]:
        raise SystemExit("the pictures arrived altered: copy them again")
    del content
    pictures = np.load(folder / job["pictures"], allow_pickle=False)
    files = []
    for place, wanted in enumerate(job["files"]):
        begin = time.monotonic()
        files.append(run_file(folder, place, wanted, pictures, job))
        how = files[-1]["error"] or f"{len(pictures)} pictures, {time.monotonic() - begin:.1f} s"
        print(f"{wanted['file']} on {wanted['runtime']}: {how}", flush=True)
    result = {"schema": SCHEMA, "nonce": job["nonce"], "machine": machine(), "versions": versions(), "files": files}
    aside = folder / "result.json.partial"
    aside.write_text(json.dumps(result), encoding="utf-8")
    os.replace(aside, folder / "result.json")


def run_file(folder: Path, place: int, wanted: dict[str, Any], pictures: NDArray[Any], job: dict[str, Any]) -> Any:
    """One file's entry in result.json; its answers are written beside."""
    entry: dict[str, Any] = {"file": wanted["file"], "runtime": wanted["runtime"], "sha256": "", "outputs": {}}
    entry.update({"answers": "", "answers_sha256": "", "latency": None, "error": ""})
    try:
        content = (folder / wanted["file"]).read_bytes()
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        begin = time.perf_counter()
        # From these bytes, not from the path, so that the digest is that of what runs.
        interpreter = load(content, runtime=wanted["runtime"], threads=wanted["threads"])
        load_ms = 1e3 * (time.perf_counter() - begin)
        outputs = outputs_of(interpreter)
        slot = interpreter.get_input_details()[0]
        if slot["dtype"] == np.float32 and job["standardize"] is not None:
            mean, std = (np.array(job["standardize"][key], np.float32) for key in ("mean", "std"))
            pictures = (pictures.astype(np.float32) - mean) / std
        answers = run(interpreter, int(slot["index"]), outputs, pictures)
        name = f"{place}.npz"
        save(folder / name, answers)
        entry["outputs"] = {
            output: {
                "dtype": np.dtype(detail["dtype"]).name,
                "scale": float(detail["quantization"][0]),
                "zero_point": int(detail["quantization"][1]),
            }
            for output, detail in outputs.items()
        }
        entry["answers"] = name
        entry["answers_sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if job["timed_runs"]:
            entry["latency"] = {**timed(interpreter, runs=job["timed_runs"]), "load_ms": load_ms}
    except (ValueError, RuntimeError, OSError, MemoryError, LookupError, TypeError) as error:
        entry["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return entry


def load(content: bytes, *, runtime: str, threads: int) -> Any:
    """An interpreter with its tensors allocated."""
    litert = importlib.import_module("ai_edge_litert.interpreter")  # it has no types
    interpreter = litert.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=getattr(litert.OpResolverType, RESOLVERS[runtime]),
    )
    interpreter.allocate_tensors()
    return interpreter


def outputs_of(interpreter: Any) -> dict[str, Any]:
    """Output name to its details: by the signature where there is one, else by tensor name."""
    if len(interpreter.get_signature_list()) == 1:
        return dict(interpreter.get_signature_runner().get_output_details())
    return {detail["name"]: detail for detail in interpreter.get_output_details()}


def run(interpreter: Any, index: int, outputs: dict[str, Any], pictures: NDArray[Any]) -> dict[str, Any]:
    """Each picture, one at a time: output name to (N, *shape)."""
    batched = {name: len(detail["shape"]) > 0 and int(detail["shape"][0]) == 1 for name, detail in outputs.items()}
    answers = {}
    for name, detail in outputs.items():
        shape = [int(side) for side in detail["shape"]]
        answers[name] = np.empty((len(pictures), *(shape[1:] if batched[name] else shape)), detail["dtype"])
    for row, picture in enumerate(pictures):
        interpreter.set_tensor(index, picture[None])
        interpreter.invoke()
        for name, detail in outputs.items():
            values = interpreter.get_tensor(detail["index"])
            answers[name][row] = values[0] if batched[name] else values
    return answers


def save(path: Path, answers: dict[str, Any]) -> None:
    """Write an .npz; unlike numpy.savez it takes every name an output can have."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in answers.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)


def timed(interpreter: Any, *, runs: int) -> dict[str, Any]:
    """Milliseconds of one picture, the one that was run last."""
    for _ in range(WARM_UP):
        interpreter.invoke()
    times = np.empty(runs)
    for row in range(runs):
        begin = time.perf_counter()
        interpreter.invoke()
        times[row] = 1e3 * (time.perf_counter() - begin)
    median, p90, p99 = (float(np.percentile(times, share)) for share in (50, 90, 99))
    return {"median_ms": median, "p90_ms": p90, "p99_ms": p99, "runs": runs}


def machine() -> dict[str, Any]:
    """What this device says of itself."""
    cpuinfo = _cpuinfo()
    words = cpuinfo.get("flags", cpuinfo.get("Features", "")).split()
    part = cpuinfo.get("CPU part", "") if cpuinfo.get("CPU implementer") == "0x41" else ""
    core = cpuinfo.get("model name", "") or PARTS.get(part, part)
    board = _board()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": "Android" if Path("/system/build.prop").exists() else platform.system(),
        "machine": platform.machine(),
        "model": f"{board} ({core})" if board and core else board or core or platform.processor(),
        "cores": cores,
        "features": [word for word in FEATURES if word in words],
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Versions of what computed the answers."""
    try:
        litert = importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError:
        litert = ""
    return {"python": platform.python_version(), "numpy": np.__version__, "ai-edge-litert": litert}


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _board() -> str:
    """The name on the box: of a board from its device tree, of a phone from its properties; "" elsewhere."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        pass
    try:
        done = subprocess.run(
            ["/system/bin/getprop", "ro.product.model"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
