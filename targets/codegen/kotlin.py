"""EdgeFace.kt: pre- and post-processing of an android bundle, for LiteRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from targets.codegen.model import render


def kotlin(manifest: Mapping[str, Any]) -> str:
    """The text of EdgeFace.kt, from a bundle's manifest."""
    return render("EdgeFace.kt.j2", manifest, comment="// ")
