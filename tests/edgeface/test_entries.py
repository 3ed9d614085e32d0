"""Which rows a bundle gives, and what becomes of those that cannot be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeface.config import to_plain
from edgeface.errors import DataError, MissingToolError, ModelError, UsageError
from edgeface.report.entries import MORE_RUNTIMES, bundle_entries, device_entries, runtime_entries
from edgeface.report.measure import measure
from edgeface.report.scorecard import DEVICE, FILE
from edgeface.specs import RUNTIMES, ModelSpec, output_spec


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle's manifest; no row of it is opened here."""
    names = {"edge_s.w8a8.tflite": "w8a8", "edge_s.fp32.tflite": "fp32", "edge_s.w8a32.tflite": "w8a32"}
    files = {
        name: {"precision": precision, "sha256": precision.ljust(64, "0"), "size_bytes": 7}
        for name, precision in names.items()
    }
    model = ModelSpec(name="edge_s", input_px=32, outputs=(output_spec("gender"),))
    manifest = {"schema": 1, "target": "android", "model": to_plain(model), "files": files}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_files_go_from_the_finest_arithmetic_to_the_coarsest(bundle: Path) -> None:
    entries = bundle_entries(bundle)
    assert [entry.name for entry in entries] == ["edge_s.fp32.tflite", "edge_s.w8a32.tflite", "edge_s.w8a8.tflite"]
    assert {entry.role for entry in entries} == {FILE}
    assert not any(entry.optional for entry in entries)
    assert len({entry.digest for entry in entries}) == 3


def test_a_report_tries_int8_files_on_more_runtimes(bundle: Path) -> None:
    entries = runtime_entries(bundle)
    extra = [entry for entry in entries if entry.optional]
    assert [entry.name for entry in extra] == ["edge_s.w8a8.tflite"] * len(MORE_RUNTIMES[".tflite"])
    assert [entry for entry in entries if not entry.optional] != []
    assert {runtime for runtimes in MORE_RUNTIMES.values() for runtime in runtimes} <= set(RUNTIMES)


def test_a_runtime_that_is_not_installed_has_no_row_but_a_file_that_cannot_run_has(bundle: Path) -> None:
    from dataclasses import replace

    def missing() -> None:
        raise MissingToolError("not installed")

    optional = [replace(entry, open=missing) for entry in runtime_entries(bundle) if entry.optional]
    with pytest.raises(DataError, match="no model could be run: none given"):
        measure(optional, lambda _: pytest.fail("nothing was opened"))
    with pytest.raises(DataError, match="no model could be run: not installed"):
        measure([replace(optional[0], optional=False)], lambda _: pytest.fail("nothing was opened"))


def test_a_devices_rows_are_one_job_each_and_never_kept(bundle: Path) -> None:
    entries = device_entries(bundle, "ssh:pi@board")
    assert {entry.role for entry in entries} == {DEVICE}
    assert {entry.digest for entry in entries} == {""}
    assert {entry.runtime for entry in entries} == {"tflite-xnnpack on ssh:pi@board"}
    assert all(entry.batch >= 1000 for entry in entries)
    with pytest.raises(UsageError, match="toaster"):
        device_entries(bundle, "toaster")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for entries in (bundle_entries, runtime_entries):
        with pytest.raises(ModelError, match="no bundle"):
            entries(tmp_path)
