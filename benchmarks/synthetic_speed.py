"""Faces a second of the synthetic renderer on one core, with the conditions they were measured under.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py [--faces 1000] [--px 128]

Counts processor time. Other work on the machine still slows caches and shared cores, so faces are timed in blocks of
twenty and each block counts its fastest round; the plain rate of every round is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

import cv2
import numpy as np

from edgeface.data.synthetic import render

BLOCK = 20


def processor() -> str:
    """Name of the processor, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    render(np.arange(40), seed=0, px=options.px)  # tables that are made once
    starts = range(0, options.faces, BLOCK)
    seconds = np.empty((options.rounds, len(starts)))
    for round_seconds in seconds:
        for block, first in enumerate(starts):
            start = time.process_time()
            render(np.arange(first, min(first + BLOCK, options.faces)), seed=0, px=options.px)
            round_seconds[block] = time.process_time() - start
    rates = (options.faces / seconds.sum(axis=1)).tolist()
    best = options.faces / float(seconds.min(axis=0).sum())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    conditions = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_1min": load,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    rows = {"faces": options.faces, "px": options.px, "faces_per_s": round(best, 1)}
    print(json.dumps({**rows, "rounds_per_s": [round(rate, 1) for rate in rates], "conditions": conditions}))


if __name__ == "__main__":
    main()
