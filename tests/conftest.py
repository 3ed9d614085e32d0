"""What holds for every test: an own cache, and property tests that CI repeats exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# A time limit for each example measures the machine, not the code. In CI the same examples are drawn every time.
hypothesis.settings.register_profile("edgeface", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("edgeface")

# Who starts the tests in the background has them ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache of packed crops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
