"""The audit of dependencies: a licence that is not allowed is noticed, and what was not looked up is no pass."""

from __future__ import annotations

import json
import sys
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import audit

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "audit.json"


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        ("MIT", "ALLOWED"),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND (BSD-2-Clause OR GPL-3.0-only)", "ALLOWED"),
        ("GPL-3.0-only OR MIT", "ALLOWED"),
        ("Apache Software License", "ALLOWED"),
        ("GPL-3.0-only", "DENIED"),
        ("MIT AND AGPL-3.0-or-later", "DENIED"),
        ("GNU General Public License v3 (GPLv3)", "DENIED"),
        ("GPL-3.0-only AND (MIT OR Apache-2.0)", "DENIED"),
        ("LicenseRef-NVIDIA-Proprietary", "UNKNOWN"),
        ("see LICENSE", "UNKNOWN"),
        ("MIT AND", "UNKNOWN"),
        ("(MIT", "UNKNOWN"),
        ("", "UNKNOWN"),
    ],
)
def test_an_expression_is_judged_as_a_whole(expression: str, outcome: str) -> None:
    assert audit.judge(expression) == outcome


def _metadata(**headers: str | list[str]) -> Message:
    found = Message()
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            found[name.replace("_", "-")] = value
    return found


@pytest.mark.parametrize(
    ("metadata", "declared"),
    [
        (_metadata(License_Expression="MIT", License="GPL"), "MIT"),
        (_metadata(License="BSD License"), "BSD-3-Clause"),
        (_metadata(License="MIT License\n\nPermission is hereby granted …"), "MIT"),
        (_metadata(Classifier=["Topic :: Software", "License :: OSI Approved :: MIT License"]), "MIT"),
        (_metadata(License="Google", Classifier=["License :: OSI Approved :: Apache Software License"]), "Apache-2.0"),
        (_metadata(License="our own terms"), "our own terms"),
        (_metadata(), ""),
    ],
)
def test_a_licence_is_taken_where_the_package_says_it(metadata: Message, declared: str) -> None:
    assert audit.declared_licence(metadata) == declared


def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, licence: str) -> list[dict[str, Any]]:
    """An installed package with that licence, which another one needs."""
    for name, more in (("front", "Requires-Dist: behind\nLicense-Expression: MIT\n"), ("behind", licence)):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{more}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return audit.licences({"": [Requirement("front")]})


def test_a_package_under_the_gpl_alone_is_noticed_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(tmp_path, monkeypatch, "License-Expression: GPL-3.0-only\n")
    found = audit.summary(rows)
    assert (found["outcome"], found["denied"]) == ("FAIL", ["behind"])
    assert audit.exit_code({"advisories": {"outcome": "PASS"}, "licences": found}) == 1


def test_a_package_that_says_nothing_is_listed_and_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audit.summary(_rows(tmp_path, monkeypatch, ""))
    assert (found["outcome"], found["unknown"]) == ("FAIL", ["behind"])


def test_allowed_packages_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(tmp_path, monkeypatch, "Classifier: License :: OSI Approved :: MIT License\n")
    assert audit.summary(rows)["outcome"] == "PASS"
    assert [(row["package"], row["by"]) for row in rows] == [("behind", ["base"]), ("front", ["base"])]


def test_what_is_not_installed_is_not_vouched_for() -> None:
    (row,) = audit.licences({"ios": [Requirement("edgeface-absent-package")]})
    assert (row["outcome"], row["declared"]) == ("UNKNOWN", "not installed")


def test_every_extra_of_the_project_is_asked() -> None:
    wanted = audit.requirements(audit.ROOT / "pyproject.toml")
    assert {"", "android", "ios", "openvino", "onnx", "tf", "sign", "dev"} <= wanted.keys()
    assert "torch" in {need.name for need in wanted[""]}
    assert "cryptography" in {need.name for need in wanted["sign"]}


def test_each_package_read_by_hand_is_allowed() -> None:
    assert all(audit.judge(licence) == "ALLOWED" and where for licence, where in audit.READ.values())


# -- advisories, by a program that stands in for pip-audit -------------------------------------------------------------


def _tool(tmp_path: Path, *, said: str, complained: str = "", code: int = 0) -> str:
    program = tmp_path / "pip-audit"
    lines = (f"#!{sys.executable}", "import sys", f"print({said!r})", f"print({complained!r}, file=sys.stderr)")
    program.write_text("\n".join([*lines, f"sys.exit({code})"]))
    program.chmod(0o755)
    return str(program)


WHOLE = {"name": "torch", "version": "2.13.0", "vulns": []}
FAULTY = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]}
SKIPPED = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "outcome"),
    [([WHOLE], "PASS"), ([WHOLE, FAULTY], "FAIL"), ([WHOLE, SKIPPED], "NOT_RUN"), ([FAULTY, SKIPPED], "FAIL")],
)
def test_a_fault_fails_and_a_skipped_package_is_no_pass(
    dependencies: list[dict[str, object]], outcome: str, tmp_path: Path
) -> None:
    tool = _tool(tmp_path, said=json.dumps({"dependencies": dependencies}), code=int(outcome == "FAIL"))
    assert audit.advisories(tmp_path / "constraints.txt", tool=tool)["outcome"] == outcome


def test_advisories_that_cannot_be_reached_are_not_run(tmp_path: Path) -> None:
    tool = _tool(tmp_path, said="", complained="ConnectionError: no route", code=1)
    found = audit.advisories(tmp_path / "constraints.txt", tool=tool)
    assert found["outcome"] == "NOT_RUN"
    assert found["reason"].endswith("ConnectionError: no route")
    assert audit.exit_code({"advisories": found, "licences": {"outcome": "PASS"}}) == 3


def test_without_the_tool_it_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = audit.advisories(tmp_path / "constraints.txt")
    assert (found["outcome"], found["reason"]) == ("NOT_RUN", "pip-audit is not installed: pip install pip-audit")


@pytest.mark.skipif(not RESULTS.is_file(), reason="benchmarks/results/audit.json is not there")
def test_the_record_names_a_date_and_says_why_something_was_not_run() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert found["date"]
    assert found["licences"]["outcome"] == "PASS"
    assert found["advisories"]["outcome"] != "NOT_RUN" or found["advisories"]["reason"]


@pytest.mark.skipif(not RESULTS.is_file(), reason="benchmarks/results/audit.json is not there")
def test_the_page_counts_the_packages_of_the_record() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (audit.ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    packages = found["licences"]["packages"]
    assert f"licences of {len(packages)} packages pass" in page
    assert f"licences of {len(packages) + 1} packages pass" not in page  # the twin
    assert ("has not been run" in page) == (found["advisories"]["outcome"] == "NOT_RUN")
    assert sum(row["package"] in audit.READ for row in packages) == 3, "as the page says"


@pytest.mark.skipif(not RESULTS.is_file(), reason="benchmarks/results/audit.json is not there")
def test_the_record_holds_every_package_that_is_needed_directly() -> None:
    recorded = {row["package"] for row in json.loads(RESULTS.read_text(encoding="utf-8"))["licences"]["packages"]}
    wanted = audit.requirements(audit.ROOT / "pyproject.toml")
    needed = {
        canonicalize_name(need.name)
        for needs in wanted.values()
        for need in needs
        if need.marker is None or need.marker.evaluate({"extra": ""})
    }
    assert needed - {canonicalize_name(name) for name in recorded} - {"edgeface"} == set()
    assert "torchvision" in needed, "the twin: a record from before it was needed lacks it"
