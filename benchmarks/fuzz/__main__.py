"""Does a reader answer every hostile file with an error of edgeface's own, in bounded time?

    python -m benchmarks.fuzz NAME...|all [--inputs 100000] [--seed 0] [--jobs 1] [--out FILE.json]
    python -m benchmarks.fuzz NAME... --engine coverage                   inputs grown by atheris instead
    python -m benchmarks.fuzz NAME --again SEED:INDEX --keep FOLDER       the files of one input, to look at

Inputs are mutations of whole files: bytes flipped, cut, repeated and exchanged; values of JSON and TOML replaced,
removed and moved; headers of safetensors and .npy rewritten with their lengths put right; checksums and digests put
right as well, so that the readers behind them are reached. Each input is a pure function of seed and index; those of
`mil` in one process alone, since two conversions to Core ML differ in their identifiers. A reader may return or raise
EdgefaceError; anything else, and more than `SLOW_S` of CPU time or `MEMORY_BYTES`, is found.

Files that native code reads are tried as `try_apart` tries them, then opened, timed and run, all in one process forked
for each input. A file that ends the trial is refused, which is what the trial is for, and counted in a column of its
own; one that passes the trial and then ends the process is found.

The coverage engine needs atheris (`pip install atheris`; no dependency of edgeface). libFuzzer, seeded with inputs of
the mutation engine, grows the one file that `Reader.grown` puts among the others, led by the branches of edgeface.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fuzz.loop import fuzz, grow, make_input, place, tell
from benchmarks.fuzz.readers import READERS

MEMORY_BYTES = 6 << 30  # of address space, torch's reserve included


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| reader | engine | inputs | read | refused | of these, ended in a trial | found | slowest, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['reader']} | {row['engine']} | {row['inputs']:,} | {row['accepted']:,} | {row['refused']:,} "
            f"| {row['ended']:,} | {len(row['found'])} | {row['slowest_ms']:.0f} |"
        )
    return "\n".join(lines)


WORDS = """# Hostile files

`python -m benchmarks.fuzz all --inputs 100000`; conditions, and the commit, date and seconds of each row, in the JSON.
Each input of the engine "mutation" is a mutation of a whole file, with lengths, checksums and digests put right often
enough that the readers behind them are reached; those of "coverage" (`--engine coverage`, atheris) are grown from such
mutations by libFuzzer, led by the branches of edgeface's own readers. "Read" inputs were taken for whole (a flipped bit
in a pixel is one), "refused" ones ended in an error of edgeface's own, and "found" counts distinct failures of any
other kind: an exception, more than 10 s of CPU time or 6 GiB of address space. "Ended in a trial" are model files that
took their process down, by a signal or a limit, in the trial that `docs/security.md` describes: for a user an error
that names the file. Times are CPU time, and for files that are tried in a process of their own wall time, fork
included. The machine was busy.
"""


def record(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows into the recorded ones, each in the place of an earlier one of its reader and engine.

    A row has its own commit and date. Of rows recorded before there were such, they are unknown.
    """
    from edgeface.files import write_bytes, write_json
    from edgeface.provenance import cpu, versions

    earlier = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    kept = {(row["reader"], row["engine"]): row for row in (*earlier, *rows)}
    unknown = {"commit": "unknown", "date": "unknown"}
    ordered = [{**unknown, **kept[key]} for key in sorted(kept, key=lambda key: (list(READERS).index(key[0]), key[1]))]
    conditions = {"machine": cpu(), "versions": versions(), "threads": 1, "nice": os.nice(0)}
    write_json(out, {"schema": 1, "rows": ordered, "conditions": conditions})
    write_bytes(out.with_suffix(".md"), f"{WORDS}\n{markdown(ordered)}\n".encode())


def main() -> None:
    from edgeface.provenance import commit

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=(*READERS, "all"), help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the inputs")
    parser.add_argument("--engine", choices=("mutation", "coverage"), default="mutation")
    parser.add_argument("--out", type=Path, default=None, help="default: print alone")
    parser.add_argument("--again", metavar="SEED:INDEX", help="write one input instead of reading many")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-case"))
    options = parser.parse_args()
    names = list(READERS) if "all" in options.names else options.names
    if options.again:
        seed, index = map(int, options.again.split(":"))
        shutil.rmtree(options.keep, ignore_errors=True)
        options.keep.mkdir(parents=True)
        place(options.keep, make_input(names[0], seed=seed, index=index), known=set())
        print(READERS[names[0]]().read(options.keep))
        return

    begun = {"commit": commit(), "date": datetime.date.today().isoformat()}  # of the code that is read now

    def done(row: dict[str, Any]) -> None:
        if options.out is not None:
            record(options.out, [{**row, **begun}])
        print(markdown([row]), flush=True)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if options.engine == "coverage":
        if len(names) != 1:
            parser.error("--engine coverage takes one reader: libFuzzer ends with the process")
        grow(names[0], inputs=options.inputs, seed=options.seed, done=done)
    failed = False
    for name in names:
        row = fuzz(name, inputs=options.inputs, seed=options.seed, jobs=options.jobs, told=tell)
        done(row)
        failed |= bool(row["found"])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
