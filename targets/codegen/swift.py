"""EdgeFace.swift: pre- and post-processing of an ios bundle, for Core ML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from targets.codegen.model import render


def swift(manifest: Mapping[str, Any]) -> str:
    """The text of EdgeFace.swift, from a bundle's manifest."""
    return render("EdgeFace.swift.j2", manifest, comment="// ")
