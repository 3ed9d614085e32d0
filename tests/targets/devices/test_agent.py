"""The agent runs what a job says, tells what it loaded, and needs nothing of edgeface."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeface.files import sha256_file
from targets.devices.device import AGENT
from targets.devices.job import subject
from targets.devices.shipped import Faces, Shipped
from targets.runners import open_model

from .conftest import FILES


def job_of(folder: Path, bundle: Path, faces: Faces, *, timed_runs: int = 0, files: tuple[str, ...] = ()) -> Path:
    """A job folder, as the contract in agent.py writes it down."""
    folder.mkdir()
    names = files or (FILES["w8a8"], FILES["fp32"])
    for name in names:
        if (bundle / name).exists():
            (folder / name).write_bytes((bundle / name).read_bytes())
    np.save(folder / "pictures.npy", faces.images[:6])
    entry = {"sha256": "", "runtime": "tflite-xnnpack", "threads": 1}
    job = {
        "schema": 1,
        "nonce": "ab",
        "files": [{**entry, "file": name} for name in names],
        "pictures": "pictures.npy",
        "pictures_sha256": sha256_file(folder / "pictures.npy"),
        "standardize": {"mean": [128.0] * 3, "std": [64.0] * 3},
        "timed_runs": timed_runs,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return folder


def start(job: Path) -> subprocess.CompletedProcess[str]:
    # -I: neither the working folder nor PYTHONPATH, so that nothing of edgeface can be found by them
    words = [sys.executable, "-I", str(AGENT), str(job)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=job)


def result_of(job: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((job / "result.json").read_text(encoding="utf-8"))
    return result


def test_agent_answers_as_the_runner_does(tmp_path: Path, bundle: Path, faces: Faces) -> None:
    job = job_of(tmp_path / "job", bundle, faces)

    assert start(job).returncode == 0

    result = result_of(job)
    assert (result["schema"], result["nonce"]) == (1, "ab")
    assert [entry["error"] for entry in result["files"]] == ["", ""]
    for entry in result["files"]:
        assert entry["sha256"] == sha256_file(bundle / entry["file"])
        assert entry["answers_sha256"] == sha256_file(job / entry["answers"])
        assert entry["latency"] is None
        expected = open_model(bundle / entry["file"]).run_codes(faces.images[:6])  # type: ignore[attr-defined]
        with np.load(job / entry["answers"], allow_pickle=False) as answers:
            assert set(answers.files) == {"landmarks5", "gender", "smile"}
            for name in answers.files:
                assert np.array_equal(answers[name], expected[name])
                assert not np.array_equal(answers[name], expected[name][::-1])  # the twin: the faces differ


def test_agent_tells_the_grids_of_the_file(tmp_path: Path, bundle: Path, faces: Faces) -> None:
    job = job_of(tmp_path / "job", bundle, faces)
    start(job)

    for entry, path in zip(result_of(job)["files"], FILES.values(), strict=True):
        slots = subject(bundle / path, runtime="tflite-xnnpack").slots
        told = {name: (slot["dtype"], slot["scale"], slot["zero_point"]) for name, slot in entry["outputs"].items()}
        assert told == {name: (slot.dtype, slot.scale, slot.zero_point) for name, slot in slots.items()}
    assert result_of(job)["files"][0]["outputs"]["gender"]["dtype"] == "int8"


def test_agent_says_what_it_runs_on(tmp_path: Path, bundle: Path, faces: Faces) -> None:
    job = job_of(tmp_path / "job", bundle, faces, timed_runs=5)
    start(job)

    result = result_of(job)
    assert result["machine"].keys() == {"system", "machine", "model", "cores", "features", "kernel"}
    assert result["versions"]["numpy"] == np.__version__
    assert all(result["versions"].values())
    latency = result["files"][0]["latency"]
    assert latency["runs"] == 5
    assert 0 < latency["median_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
    assert latency["load_ms"] > 0


def test_file_that_cannot_be_run_does_not_stop_the_others(tmp_path: Path, bundle: Path, faces: Faces) -> None:
    job = job_of(tmp_path / "job", bundle, faces, files=("gone.tflite", FILES["w8a8"]))

    assert start(job).returncode == 0
    gone, whole = result_of(job)["files"]
    assert "FileNotFoundError" in gone["error"]
    assert (gone["answers"], whole["error"], whole["answers"]) == ("", "", "1.npz")


def test_altered_pictures_are_refused(tmp_path: Path, bundle: Path, faces: Faces) -> None:
    job = job_of(tmp_path / "job", bundle, faces)
    content = bytearray((job / "pictures.npy").read_bytes())
    content[-1] ^= 1
    (job / "pictures.npy").write_bytes(content)

    done = start(job)

    assert done.returncode != 0
    assert "altered" in done.stderr
    assert not (job / "result.json").exists()


def test_another_schema_is_refused(tmp_path: Path, bundle: Path, faces: Faces) -> None:
    job = job_of(tmp_path / "job", bundle, faces)
    text = (job / "job.json").read_text(encoding="utf-8")
    (job / "job.json").write_text(text.replace('"schema": 1', '"schema": 2'), encoding="utf-8")

    assert "schema 2" in start(job).stderr


def strange(source: str) -> set[str]:
    """Imports beyond the standard library."""
    tree = ast.parse(source, feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_agent_needs_numpy_and_python_3_9_alone() -> None:
    assert strange(AGENT.read_text(encoding="utf-8")) == {"numpy"}


@pytest.mark.parametrize("line", ["from edgeface.files import sha256_file", "import torch"])
def test_a_strange_import_is_seen_twin(line: str) -> None:
    assert strange(f"{AGENT.read_text(encoding='utf-8')}\n{line}\n") > {"numpy"}


def test_newer_syntax_is_seen_twin() -> None:
    with pytest.raises(SyntaxError):
        strange("match 1:\n    case 1:\n        pass\n")


def test_float_input_is_standardized_as_the_job_says(
    run_folder: Path, tmp_path: Path, shipped: Shipped, faces: Faces
) -> None:
    from targets.build import build

    bundle = build(run_folder, precisions=("fp32",), out=tmp_path / "out", float_input=True)
    job = job_of(tmp_path / "job", bundle, faces, files=(FILES["fp32"],))
    assert start(job).returncode == 0
    expected = open_model(bundle / FILES["fp32"]).run(faces.images[:6])
    with np.load(job / "0.npz", allow_pickle=False) as answers:
        assert all(np.array_equal(answers[name], expected[name]) for name in expected)

    text = (job / "job.json").read_text(encoding="utf-8")
    (job / "job.json").write_text(text.replace("64.0", "32.0"), encoding="utf-8")  # the twin
    assert start(job).returncode == 0
    with np.load(job / "0.npz", allow_pickle=False) as answers:
        assert not any(np.array_equal(answers[name], expected[name]) for name in expected)
