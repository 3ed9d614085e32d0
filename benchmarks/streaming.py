"""How fast shards are packed and streamed, and what memory training and scoring on them hold, by number of samples.

    python -m benchmarks.streaming rates  [--faces 4096] [--rounds 5]
    python -m benchmarks.streaming places [--faces 4096] [--rounds 5]
    python -m benchmarks.streaming memory [--samples 10000 100000 1000000]

All write into benchmarks/results/streaming.{json,md}; memory also streaming-memory.{csv,png}. Faces are drawn ones,
stored as JPEG files with five landmarks, gender and age, so that packing decodes as it would a real corpus. `rates`
takes the ways of reading in turn, round after round, and gives medians: what other programs take of the machine then
falls on all of them. `places` does so with the two ways to find samples, by tables and by headers. `memory` makes its
shards by copying one of 4,096 faces (24 px), and walks one epoch of each size in a process of its own, whose resident
memory the kernel tells; so it does with scoring a model that answers the mean of each task (its arithmetic is nothing,
its answers are of full size), and with reading all labels, as `data inspect` does. The copies are deleted afterwards.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus
from edgeface.data.loader import Batches
from edgeface.data.pack import pack
from edgeface.data.places import SUFFIX, places_file
from edgeface.data.shard_writer import Plan, encode_picture, pack_shards
from edgeface.data.shards import Shards, index_file, joined, read_index, tabulate, write_index
from edgeface.data.sources import open_source
from edgeface.data.stream import StreamBatches, once, open_stream
from edgeface.data.tar import members, open_tar, read_member
from edgeface.evaluate import Outputs, evaluate, evaluation_pack
from edgeface.files import sha256_file, write_bytes, write_json
from edgeface.processes import one_blas_thread
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import AugmentSpec, ModelSpec, OutputSpec
from edgeface.tasks import TASKS as TASK_WORDS

RESULTS = Path(__file__).resolve().parent / "results"
OUT = RESULTS / "streaming.json"
TASKS = ("landmarks5", "gender", "age")
STILL = AugmentSpec(
    rotation_deg=0.0,
    scale=(1.0, 1.0),
    translation=0.0,
    mirror_share=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    blur_share=0.0,
    jpeg_share=0.0,
    occlusion_share=0.0,
)
PX, MARGIN, BATCH, INPUT_PX = 96, 1.3, 256, 64
SMALL_PX, SMALL_INPUT_PX = 24, 16
SHARD = 4096
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


def write_faces(folder: Path, count: int) -> None:
    """A folder of drawn faces as JPEG files of 144 px with a metadata.csv."""
    drawn = open_source(f"synthetic:{count}@train", root=folder)
    folder.mkdir(parents=True)
    points = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
    with (folder / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "gender", "age", "person", "x", "y", "w", "h", *points])
        for index in range(count):
            name = f"{index:06d}.jpg"
            (folder / name).write_bytes(encode_picture(drawn.load(index), "jpg"))
            x, y, side = drawn.crops[index].tolist()
            table.writerow(
                [
                    name,
                    int(drawn.labels["gender"][index]),
                    round(float(drawn.labels["age"][index, 0]), 2),
                    drawn.people[index],
                    *(x - side / 2, y - side / 2, side, side),
                    *drawn.labels["landmarks5"][index].round(2).reshape(-1).tolist(),
                ]
            )


def plan(faces: Path, *, px: int, encoding: str, size: int) -> Plan:
    return Plan(source=f"folder:{faces}", root=faces, px=px, margin=MARGIN, shard_size=size, encoding=encoding)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and time of all processors, children included, which other programs hardly lengthen."""

    def busy() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    began, before = time.perf_counter(), busy()
    work()
    return time.perf_counter() - began, busy() - before


def raw(shards: Shards) -> None:
    """Every byte of the shards in their order, and nothing else."""
    for shard in shards.shards:
        with shard.path.open("rb") as stream:
            while stream.read(1 << 20):
                pass


def by_tarfile(shards: Shards) -> None:
    """Every member with Python's own reader."""
    for shard in shards.shards:
        with tarfile.open(shard.path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                file.read()


def by_member(shards: Shards) -> None:
    """Every member with edgeface's reader of hostile tar files."""
    for shard in shards.shards:
        with open_tar(shard.path) as descriptor:
            for member in members(descriptor, shard.path):
                read_member(descriptor, member, where="")


def batches_of(parts: Sequence[Any], *, augment: AugmentSpec, input_px: int, batch: int = BATCH) -> Any:
    kind = Batches if hasattr(parts[0], "images") else StreamBatches
    return kind(parts, tasks=TASKS, augment=augment, input_px=input_px, batch=batch, seed=0)


def walk(batches: Any, *, epoch: int = 0) -> None:
    for _ in batches.epoch(epoch):
        pass


def rates(work: Path, *, count: int, rounds: int) -> dict[str, Any]:
    """Samples a second of packing and of each way of reading, medians over interleaved rounds."""
    faces = work / "faces"
    write_faces(faces, count)
    corpus: Corpus = open_source(f"folder:{faces}", root=faces)
    packing: dict[str, list[tuple[float, float]]] = {}
    for turn in range(max(1, rounds // 2)):
        for encoding, workers in (("png", 1), ("png", 2), ("jpg", 2), ("ppm", 2)):
            folder = work / f"{encoding}-{workers}-{turn}"
            chosen = plan(faces, px=PX, encoding=encoding, size=max(256, count // 8))
            took = seconds(
                lambda folder=folder, chosen=chosen, workers=workers: pack_shards(chosen, folder, workers=workers)
            )
            packing.setdefault(f"shards, {encoding}, {workers} processes", []).append(took)
        took = seconds(lambda turn=turn: pack(corpus, px=PX, margin=MARGIN, cache=work / f"cache-{turn}"))
        packing.setdefault("memory-mapped pack, 2 threads", []).append(took)
    whole = pack(corpus, px=PX, margin=MARGIN, cache=work / "cache-0")
    told = {name: read_index(index_file(work / f"{name}-2-0", "")) for name in ("png", "jpg", "ppm")}
    streams = {name: open_stream(f"webdataset:{work / f'{name}-2-0'}", px=PX, margin=MARGIN) for name in told}
    ways: dict[str, Callable[[], object]] = {}
    for name, shards in told.items():
        ways[f"{name}: bytes of the tar files"] = lambda shards=shards: raw(shards)
        ways[f"{name}: members, Python's tarfile"] = lambda shards=shards: by_tarfile(shards)
        ways[f"{name}: members, checked"] = lambda shards=shards: by_member(shards)
        ways[f"{name}: streamed crops, in order"] = lambda stream=streams[name]: [
            len(piece) for _, pieces in once(stream) for piece in pieces
        ]
        ways[f"{name}: streamed batches, shuffled"] = lambda stream=streams[name]: walk(
            batches_of([stream], augment=STILL, input_px=INPUT_PX)
        )
        ways[f"{name}: streamed batches, shuffled and augmented"] = lambda stream=streams[name]: walk(
            batches_of([stream], augment=AugmentSpec(), input_px=INPUT_PX)
        )
    ways["png: places of the samples"] = lambda: [tabulate(shard.path) for shard in told["png"].shards]
    ways["memory-mapped pack: batches, shuffled"] = lambda: walk(batches_of([whole], augment=STILL, input_px=INPUT_PX))
    ways["memory-mapped pack: batches, shuffled and augmented"] = lambda: walk(
        batches_of([whole], augment=AugmentSpec(), input_px=INPUT_PX)
    )
    reading: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            reading[name].append(seconds(way))

    def table(found: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
        return [
            {
                "what": name,
                "samples_per_s": round(count / statistics.median(wall for wall, _ in times)),
                "slowest": round(count / max(wall for wall, _ in times)),
                "fastest": round(count / min(wall for wall, _ in times)),
                "cpu_us": round(1e6 * statistics.median(busy for _, busy in times) / count, 1),
            }
            for name, times in found.items()
        ]

    size = {name: round(sum(s.size_bytes for s in shards.shards) / count) for name, shards in told.items()}
    return {
        "faces": count,
        "rounds": rounds,
        "px": PX,
        "margin": MARGIN,
        "input_px": INPUT_PX,
        "batch": BATCH,
        "load_average": round(os.getloadavg()[0], 1),
        "bytes_per_sample": {**size, "memory-mapped pack": PX * PX * 3},
        "packing": table(packing),
        "reading": table(reading),
    }


def places(work: Path, *, count: int, rounds: int) -> dict[str, Any]:
    """What finding samples takes by tables of places and by headers, of one shard; medians over interleaved rounds."""
    faces = work / "faces"
    write_faces(faces, count)
    folders = {"by tables": work / "tabled", "by headers": work / "walked"}
    tabled = pack_shards(plan(faces, px=PX, encoding="jpg", size=SHARD), folders["by tables"], workers=2)
    shutil.copytree(folders["by tables"], folders["by headers"], ignore=shutil.ignore_patterns(f"*{SUFFIX}"))
    ways: dict[str, Callable[[], object]] = {}
    for name, folder in folders.items():
        shards = read_index(index_file(folder, ""))
        stream = open_stream(f"webdataset:{folder}", px=PX, margin=MARGIN)
        ways[f"places, {name}"] = lambda shards=shards: [shard.table() for shard in shards.shards]
        ways[f"crops in order, {name}"] = lambda stream=stream: [
            len(piece) for _, pieces in once(stream) for piece in pieces
        ]
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(1e6 * seconds(way)[1] / count)
    rows = [
        {
            "what": name,
            "cpu_us": round(statistics.median(times), 2),
            "lowest": round(min(times), 2),
            "highest": round(max(times), 2),
        }
        for name, times in found.items()
    ]
    size = sum(places_file(shard.path).stat().st_size for shard in tabled.shards)
    return {
        "faces": count,
        "shard": SHARD,
        "px": PX,
        "rounds": rounds,
        "load_average": round(os.getloadavg()[0], 1),
        "table_bytes_per_sample": round(size / count, 1),
        "rows": rows,
        "conditions": {"machine": cpu(), "versions": versions(), "commit": commit()},
    }


def copy_shards(work: Path, most: int) -> Shards:
    """Enough copies of one packed shard for `most` samples."""
    faces = work / "faces"
    write_faces(faces, SHARD)
    one = pack_shards(plan(faces, px=SMALL_PX, encoding="png", size=SHARD), work / "one", workers=1)
    (shard,) = one.shards
    folder = work / "many"
    folder.mkdir()
    content = shard.path.read_bytes()
    parts = []
    for number in range(-(-most // SHARD)):
        path = folder / f"train-{number:06d}.tar"
        # Names of as many bytes that no other copy has; a tar's checksums are of its headers only.
        path.write_bytes(
            content.replace(b'"key":"00', b'"key":"' + (LETTERS[number // 36] + LETTERS[number % 36]).encode())
        )
        shutil.copyfile(places_file(shard.path), places_file(path))
        parts.append(replace(one, split="train", shards=(replace(shard, path=path, sha256=sha256_file(path)),)))
    return joined(parts)


def resident() -> dict[str, float]:
    """Memory of this process in MiB, as the kernel counts it: now, and the most so far."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(told[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}


class Constant:
    """A model that gives every face the same answers, of the tasks' full size; `edgeface.evaluate.Runner`."""

    spec = ModelSpec(
        name="constant",
        input_px=SMALL_INPUT_PX,
        outputs=(
            OutputSpec(name="landmarks5", task="landmarks5", shape=(5, 2), mean_shape=((0.5, 0.5),) * 5),
            OutputSpec(name="gender", task="gender", shape=(2,), classes=TASK_WORDS["gender"].classes),
            OutputSpec(name="age", task="age", shape=(101,)),
        ),
    )
    runtime, precision = "torch", "fp32"

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        return {output.name: np.zeros((len(batch), *output.shape), np.float32) for output in self.spec.outputs}


def walk_and_tell(folder: Path, way: str) -> None:
    """In a process of its own: walk through an epoch, and print what it took."""
    source = f"webdataset:{folder}@train"
    before = resident()["now"]
    marks = []
    began = time.perf_counter()
    if way == "corpus":
        corpus = open_source(source, root=folder)
        count = len(corpus)
    elif way == "eval":
        faces = evaluation_pack(source, Constant.spec, root=folder)
        every = max(1, len(faces) // 20 // BATCH * BATCH)

        def mark(done: int) -> None:
            if done % every == 0:
                marks.append(resident()["now"])

        count = evaluate(Constant(), faces, batch=BATCH, progress=mark).samples
    else:
        stream = open_stream(source, px=SMALL_PX, margin=MARGIN)
        assert stream is not None
        batches = batches_of([stream], augment=STILL, input_px=SMALL_INPUT_PX)
        count = len(batches)
        every = max(1, batches.steps_per_epoch // 20)
        for step, _ in enumerate(batches.epoch(0)):
            if step % every == 0:
                marks.append(resident()["now"])
    took = time.perf_counter() - began
    first = 0.0
    if way == "stream":
        began = time.perf_counter()
        next(iter(batches.epoch(1, start_step=batches.steps_per_epoch // 2)))
        first = time.perf_counter() - began
    print(
        json.dumps(
            {
                "way": way,
                "samples": count,
                "before_mib": round(before, 1),
                "median_mib": round(statistics.median(marks), 1) if marks else round(resident()["now"], 1),
                "most_mib": round(resident()["most"], 1),
                "samples_per_s": round(count / took),
                **({"first_batch_of_the_middle_s": round(first, 2)} if first else {}),
            }
        )
    )


def memory(work: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of samples and way of reading."""
    shards = copy_shards(work, max(counts))
    rows = []
    for count in counts:
        folder = work / f"first-{count}"
        folder.mkdir()
        number = -(-count // SHARD)
        chosen = replace(shards, shards=shards.shards[:number], tasks=scaled(shards, number))
        for shard in chosen.shards:
            for file in (shard.path, places_file(shard.path)):
                (folder / file.name).symlink_to(file)
        write_index(index_file(folder, "train"), chosen, key="")
        for way in ("stream", "eval", "corpus"):
            command = [sys.executable, "-m", "benchmarks.streaming", "walk", str(folder), way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], file=sys.stderr)
    return rows


def scaled(shards: Shards, number: int) -> Any:
    """What is known of `number` of the copies."""
    every = len(shards.shards)
    return {
        name: replace(
            task,
            labelled=task.labelled * number // every,
            counts=task.counts * number // every,
            shape=np.asarray(task.shape * (number / every)),
        )
        for name, task in shards.tasks.items()
    }


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for way, words in (
        ("stream", "training loop"),
        ("eval", "scoring: pictures streamed, labels and answers held"),
        ("corpus", "all labels held (inspect)"),
    ):
        chosen = [row for row in rows if row["way"] == way]
        axes.plot([row["samples"] for row in chosen], [row["most_mib"] for row in chosen], marker="o", label=words)
    axes.set(xscale="log", ylim=(0, None), xlabel="samples", ylabel="resident memory at its highest, MiB")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report(found: dict[str, Any]) -> str:
    """The page beside the JSON."""
    lines = [
        "# Streaming from shards",
        "",
        "Written by `python -m benchmarks.streaming rates` and `… memory`; conditions in the JSON.",
    ]
    if "rates" in found:
        part = found["rates"]
        lines += [
            "",
            f"{part['faces']} drawn faces (JPEG files of 144 px), cut to {part['px']} px with margin {part['margin']}; "
            f"medians of {part['rounds']} interleaved rounds (packing: half of them). All was in the page cache: "
            "these are rates of the processor, not of a disk. "
            "Torch and NumPy computed on one thread each, beside the threads that decode. "
            f"Other programs ran meanwhile (load average {part['load_average']:.0f} on two cores), so compare rows "
            "with each other; the time of the processor is what a sample costs on a quiet core.",
            "",
            "| | samples/s | slowest | fastest | processor time of a sample, µs |",
            "|---|---:|---:|---:|---:|",
        ]
        for name in ("packing", "reading"):
            lines += [
                f"| {name}: {row['what']} | {row['samples_per_s']:,} | {row['slowest']:,} | {row['fastest']:,} | "
                f"{row['cpu_us']:,} |"
                for row in part[name]
            ]
        sizes = ", ".join(f"{name} {size:,}" for name, size in part["bytes_per_sample"].items())
        lines += [
            "",
            "Packing by two processes includes their start, some 2 s of processor time each, which so few faces "
            "do not outweigh.",
            "",
            f"Bytes of a sample, tar headers and labels included: {sizes}.",
        ]
    if "places" in found:
        part = found["places"]
        lines += [
            "",
            f"Finding samples: processor time of a sample, µs; {part['faces']:,} crops of {part['px']} px as jpg in "
            f"shards of {part['shard']:,}, medians of {part['rounds']} interleaved rounds. By tables, the header of "
            "each member is checked when that member is read, so that one process which reads all of them gains "
            "nothing; what a process does for the samples of others is the first row alone. "
            f"A table has {part['table_bytes_per_sample']} bytes a sample.",
            "",
            "| | median | lowest | highest |",
            "|---|---:|---:|---:|",
            *(f"| {row['what']} | {row['cpu_us']} | {row['lowest']} | {row['highest']} |" for row in part["rows"]),
        ]
    if "memory" in found:
        lines += [
            "",
            f"Resident memory of a process that walks one epoch (crops of {SMALL_PX} px, batches of {BATCH}, "
            "3 tasks: `stream`), scores a model that computes nothing on all of them (113 values a face: `eval`), or "
            "reads their labels (`corpus`); `before` is what the imports take.",
            "",
            "| samples | way | before, MiB | median, MiB | highest, MiB | samples/s | first batch from the middle, s |",
            "|---:|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['samples']:,} | {row['way']} | {row['before_mib']} | {row['median_mib']} | {row['most_mib']} | "
            f"{row['samples_per_s']:,} | {row.get('first_batch_of_the_middle_s', '')} |"
            for row in found["memory"]
        ]
        lines += ["", "![resident memory by number of samples](streaming-memory.png)"]
    return "\n".join([*lines, ""])


def one_thread() -> None:
    """Torch and NumPy compute on one thread until the process ends: threads that wait take processor time, too."""
    import torch

    torch.set_num_threads(1)
    one_blas_thread()  # without `with`: nothing ends it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "places", "memory", "walk", "report"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--faces", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", type=Path, help="folder for the shards, some GB; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.what == "walk":
        walk_and_tell(Path(arguments.rest[0]), arguments.rest[1])
        return
    found = json.loads(OUT.read_text()) if OUT.is_file() else {"schema": 1}
    if arguments.what in ("rates", "places"):
        one_thread()
    if arguments.what != "report":
        with tempfile.TemporaryDirectory(dir=arguments.work) as place:
            if arguments.what == "rates":
                found["rates"] = rates(Path(place), count=arguments.faces, rounds=arguments.rounds)
            elif arguments.what == "places":
                found["places"] = places(Path(place), count=arguments.faces, rounds=arguments.rounds)
            else:
                found["memory"] = memory(Path(place), arguments.samples)
        if arguments.what != "places":  # which states its own
            found["conditions"] = {"machine": cpu(), "versions": versions(), "commit": commit(), "decoding_threads": 2}
        write_json(OUT, found)
    if "memory" in found:
        table = ["samples,way,before_mib,median_mib,most_mib,samples_per_s"]
        table += [",".join(str(row[name]) for name in table[0].split(",")) for row in found["memory"]]
        write_bytes(RESULTS / "streaming-memory.csv", ("\n".join(table) + "\n").encode())
        plot(found["memory"], RESULTS / "streaming-memory.png")
    write_bytes(OUT.with_suffix(".md"), report(found).encode())


if __name__ == "__main__":
    main()
