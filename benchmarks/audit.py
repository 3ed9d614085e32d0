"""Known faults and licences of everything edgeface depends on.

    python -m benchmarks.audit [--out benchmarks/results/audit.json] [--pip-audit PROGRAM]

Advisories: pip-audit looks up each pin of constraints.txt in the Python Packaging Advisory Database. Where it is not
installed, or the database cannot be reached, the outcome is NOT_RUN with the reason, which is no pass.

Licences: of every installed package that an extra of pyproject.toml needs, directly or through others, as the package
itself declares it, against ALLOWED. What declares nothing, or words that are no licence known here, is UNKNOWN and
fails until somebody has read the package's own text and written it into READ. This part needs no network.

Exit codes: 0 both pass · 1 a fault was found, or a licence that is not allowed or not known · 3 something was not run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from edgeface.files import write_json
from edgeface.provenance import commit, cpu, versions
from targets.sbom import closure

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "audit.json"
LIMIT_S = 600.0

# Licences under which a package may be used beside an Apache-2.0 program without changing that program's own terms.
# The LGPL and the MPL bind changes to the package itself, of which edgeface makes none.
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
    *("HPND", "ISC", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MIT-0"),
    *("MIT-CMU", "MPL-1.1", "MPL-2.0", "NCSA", "PSF-2.0", "Python-2.0", "Unlicense", "WTFPL", "Zlib", "bzip2-1.0.6"),
    *("libpng-2.0", "FTL", "blessing", "Apache-2.0 WITH LLVM-exception", "GPL-3.0-or-later WITH GCC-exception-3.1"),
}
# Known, and not to be depended on: with them, whoever ships edgeface would owe more than edgeface's own terms say.
DENIED = {
    *("AGPL-3.0-only", "AGPL-3.0-or-later", "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later"),
    *("AGPL-3.0", "GPL-2.0", "GPL-3.0", "SSPL-1.0", "BUSL-1.1", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "Elastic-2.0"),
}

# What packages write in place of SPDX's names: lower case to SPDX.
WORDS = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "bsd-2-clause license": "BSD-2-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psf": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "gnu general public license v2 (gplv2)": "GPL-2.0-only",
    "gnu general public license v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu general public license v3 or later (gplv3+)": "GPL-3.0-or-later",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.1-or-later",
    "gpl": "GPL-3.0-only",
    "gplv3": "GPL-3.0-only",
    "agpl": "AGPL-3.0-only",
}

# Packages whose metadata do not say it, read by hand: name to SPDX expression and where it stands.
READ = {
    "namex": ("Apache-2.0", "licenses/LICENSE of 0.1.0"),
    "skops": ("MIT", "licenses/LICENSE of 0.16.0"),
    "torchao": ("BSD-3-Clause", "licenses/LICENSE of 0.18.0"),
}


def requirements(pyproject: Path) -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: "" to the base, each extra to its own; extras of edgeface's own are left out."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    own = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [found for line in lines if (found := Requirement(line)).name != project["name"]]
        for extra, lines in own.items()
    }


def licences(wanted: Mapping[str, Sequence[Requirement]]) -> list[dict[str, Any]]:
    """A row of each package: its version, who asks for it, what it declares, and "ALLOWED", "DENIED" or "UNKNOWN"."""
    asked: dict[str, set[str]] = {}
    absent: dict[str, set[str]] = {}
    for extra, needs in wanted.items():
        for need in needs:
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            found = {name for inner in ("", *need.extras) for name in closure(need.name, extra=inner)}
            for name in found:
                asked.setdefault(name, set()).add(extra or "base")
            if not found:
                absent.setdefault(need.name, set()).add(extra or "base")
    rows = [_row(name, by) for name, by in asked.items()]
    rows += [
        {"package": name, "version": "", "by": sorted(by), "declared": "not installed", "outcome": "UNKNOWN"}
        for name, by in absent.items()
    ]
    return sorted(rows, key=lambda row: str(row["package"]).lower())


def _row(name: str, by: set[str]) -> dict[str, Any]:
    declared = READ[name][0] if name in READ else declared_licence(importlib.metadata.distribution(name).metadata)
    return {
        "package": name,
        "version": importlib.metadata.version(name),
        "by": sorted(by),
        "declared": declared,
        "outcome": judge(declared),
    }


def declared_licence(metadata: Any) -> str:
    """The SPDX expression that a package's metadata hold, or its own words where they are none; "" for nothing.

    Args:
        metadata: An email.message.Message of the core metadata.
    """
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if line.startswith("License ::")
    ]
    named = [word for word in classifiers if word != "OSI Approved"]
    text = (metadata.get("License") or "").strip()
    first = text.splitlines()[0].strip() if text else ""  # some hold the whole text
    for words in ([first] if first else [], named):
        known = [WORDS.get(word.lower(), word) for word in words]
        if known and all(judge(word) != "UNKNOWN" for word in known):
            return " OR ".join(known)  # classifiers list the choices
    return first[:100] or " OR ".join(named)


def judge(expression: str) -> str:
    """What an SPDX expression comes to: "ALLOWED", "DENIED" or "UNKNOWN"."""
    try:
        words = re.findall(r"\(|\)|[^\s()]+", WORDS.get(expression.strip().lower(), expression))
        return {True: "ALLOWED", False: "DENIED"}[_either(words)] if words else "UNKNOWN"
    except (ValueError, IndexError):
        return "UNKNOWN"


def _either(words: list[str]) -> bool:
    allowed = _both(words)
    while words and words[0].upper() == "OR":
        del words[0]
        allowed |= _both(words)
    return allowed


def _both(words: list[str]) -> bool:
    allowed = _one(words)
    while words and words[0].upper() == "AND":
        del words[0]
        allowed &= _one(words)
    return allowed


def _one(words: list[str]) -> bool:
    name = words.pop(0)
    if name == "(":
        allowed = _either(words)
        if words.pop(0) != ")":
            raise ValueError("a bracket is not closed")
        return allowed
    if words and words[0].upper() == "WITH":
        name = f"{name} WITH {words[1]}"
        del words[:2]
    if words and words[0] not in ("AND", "OR", "and", "or", ")"):
        raise ValueError("words that are no expression")
    if name not in ALLOWED | DENIED:
        raise ValueError(f"{name} is on no list")
    return name in ALLOWED


def advisories(pins: Path, *, tool: str | None = None) -> dict[str, Any]:
    """What pip-audit says of the pins.

    Args:
        pins: A requirements file of exact versions.
        tool: The program; None looks for it on the PATH and beside this Python.

    Returns:
        `outcome` "PASS", "FAIL" or "NOT_RUN", `reason`, `checked` packages and `found` faults.
    """
    beside = Path(sys.executable).with_name("pip-audit")
    program = tool or shutil.which("pip-audit") or (str(beside) if beside.exists() else "")
    if not program:
        return _not_run("pip-audit is not installed: pip install pip-audit")
    # The pins are whole, so nothing is resolved, downloaded or installed.
    argv = [program, "--requirement", str(pins), "--no-deps", "--disable-pip", "--format", "json"]
    argv += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
        packages = json.loads(done.stdout)["dependencies"]
        found = [
            {"package": each["name"], "version": each["version"], "id": fault["id"], "fixed": fault["fix_versions"]}
            for each in packages
            for fault in each.get("vulns", ())
        ]
    except subprocess.TimeoutExpired:
        return _not_run(f"pip-audit did not answer within {LIMIT_S:g} s")
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = done.stderr.strip().splitlines() if not isinstance(error, OSError) else [str(error)]
        return _not_run(f"pip-audit gave no result: {said[-1][:300] if said else type(error).__name__}")
    skipped = [f"{each['name']}: {each['skip_reason']}" for each in packages if "skip_reason" in each]
    if skipped and not found:
        return _not_run(f"{len(skipped)} of {len(packages)} packages were skipped, the first one so: {skipped[0]}")
    return {"outcome": "FAIL" if found else "PASS", "reason": "", "checked": len(packages), "found": found}


def _not_run(reason: str) -> dict[str, Any]:
    return {"outcome": "NOT_RUN", "reason": reason, "checked": 0, "found": []}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The licences' part of the record."""
    by = {outcome: [row["package"] for row in rows if row["outcome"] == outcome] for outcome in ("DENIED", "UNKNOWN")}
    return {
        "outcome": "FAIL" if by["DENIED"] or by["UNKNOWN"] else "PASS",
        "denied": by["DENIED"],
        "unknown": by["UNKNOWN"],
        "packages": list(rows),
    }


def exit_code(record: Mapping[str, Any]) -> int:
    outcomes = [record["advisories"]["outcome"], record["licences"]["outcome"]]
    return 1 if "FAIL" in outcomes else 3 if "NOT_RUN" in outcomes else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--pip-audit", metavar="PROGRAM", default=None, help="default: the one on the PATH")
    options = parser.parse_args()
    rows = licences(requirements(ROOT / "pyproject.toml"))
    record = {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "conditions": {"machine": cpu(), "versions": versions(), "commit": commit()},
        "advisories": advisories(ROOT / "constraints.txt", tool=options.pip_audit),
        "licences": summary(rows),
    }
    write_json(options.out, record)
    for part in ("advisories", "licences"):
        print(f"{part}: {record[part]['outcome']} {record[part].get('reason', '')}".rstrip())  # type: ignore[index]
    for row in rows:
        if row["outcome"] != "ALLOWED":
            print(f"  {row['package']} {row['version']}: {row['outcome']} ({row['declared'] or 'declares nothing'})")
    sys.exit(exit_code(record))


if __name__ == "__main__":
    main()
