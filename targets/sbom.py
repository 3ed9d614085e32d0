"""The tool-chain that built a bundle, as a CycloneDX bill of materials: every package, its version and licence.

Source:
    CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/. Written by hand: the fields used are nine, and the library that
    writes them brings seven packages more.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeface import __version__
from edgeface.files import sha256_file, write_bytes

SBOM = "sbom.cdx.json"

# The extra whose packages wrote the files of a target.
_EXTRAS = {"android": "android", "ios": "ios", "openvino": "openvino", "onnx": "onnx"}


def write_sbom(folder: Path, *, name: str, target: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Write the bill into a bundle.

    Args:
        folder: The bundle.
        name: Of the model.
        target: Its target, whose tool-kits are listed with edgeface's own needs.
        files: Model file to its sha256.

    Returns:
        What the manifest says of it.
    """
    content = (json.dumps(sbom(name=name, target=target, files=files), indent=1) + "\n").encode()
    write_bytes(folder / SBOM, content)
    return {"file": SBOM, "format": "CycloneDX 1.6", "sha256": sha256_file(folder / SBOM)}


def sbom(*, name: str, target: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The bill as plain values; the same packages and files give the same bill."""
    packages = closure("edgeface", extra=_EXTRAS.get(target, ""))
    components = [_component(package) for package in sorted(packages, key=str.lower) if package != "edgeface"]
    model = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{name}",
        "name": name,
        "components": [
            {"type": "file", "name": file, "hashes": [{"alg": "SHA-256", "content": digest}]}
            for file, digest in sorted(files.items())
        ],
    }
    tool = {"type": "application", "bom-ref": "edgeface", "name": "edgeface", "version": __version__}
    body = {"metadata": {"component": model, "tools": {"components": [tool]}}, "components": components}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"edgeface:{digest}")
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def closure(package: str, *, extra: str = "") -> dict[str, str]:
    """Installed packages that a package needs here, directly or through others: name to version."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(package, extra)]
    while waiting:
        name, wanted = waiting.pop()
        key = (_canonical(name), wanted)
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[_canonical(name)] = distribution.version
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                waiting += [(requirement.name, inner) for inner in ("", *requirement.extras)]
    return found


def _component(package: str) -> dict[str, Any]:
    distribution = importlib.metadata.distribution(package)
    purl = f"pkg:pypi/{package}@{distribution.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package,
        "version": distribution.version,
        "purl": purl,
    }
    metadata: Any = distribution.metadata  # an email.message.Message, whose `get` its protocol leaves out
    expression = metadata.get("License-Expression")
    named = metadata.get("License") or next(
        (line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if line.startswith("License ::")),
        "",
    )
    if expression:
        component["licenses"] = [{"expression": expression}]
    elif named.strip():  # some hold the whole text
        component["licenses"] = [{"license": {"name": named.strip().splitlines()[0][:100]}}]
    return component


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
