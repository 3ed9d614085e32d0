"""`python -m edgeface`: the command line without its script."""

from __future__ import annotations

import sys

from edgeface.cli.main import main

sys.exit(main())
