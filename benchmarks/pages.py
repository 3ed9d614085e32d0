"""A result's JSON with its page of Markdown beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeface.files import write_bytes, write_json


def publish(result: Mapping[str, Any], page: str, out: Path) -> None:
    """Write a result as `out`, its page beside it as .md, and print the page."""
    write_json(out, result)
    write_bytes(out.with_suffix(".md"), page.encode())
    print(page)
