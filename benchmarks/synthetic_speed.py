"""Faces a second of the synthetic renderer on one core, with the conditions they were measured under.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py [--faces 1000] [--px 128] [--rounds 8]

Counts processor time, in whole rounds; the figure is the median round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import cv2
import numpy as np

from edgeface.data.synthetic import render
from edgeface.provenance import commit, cpu, versions

BATCH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    render(np.arange(40), seed=0, px=options.px)  # tables that are made once
    rates = []
    for _ in range(options.rounds):
        start = time.process_time()
        for first in range(0, options.faces, BATCH):
            render(np.arange(first, min(first + BATCH, options.faces)), seed=0, px=options.px)
        rates.append(options.faces / (time.process_time() - start))
    conditions = {
        "machine": cpu(),
        "versions": versions(),
        "commit": commit(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }
    rows = {"schema": 1, "faces": options.faces, "px": options.px, "faces_per_s": round(statistics.median(rates), 1)}
    print(json.dumps({**rows, "rounds_per_s": [round(rate, 1) for rate in rates], "conditions": conditions}, indent=2))


if __name__ == "__main__":
    main()
