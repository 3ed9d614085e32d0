"""A plan for 100 million faces on 64 GPUs, computed from what is measured here and from assumptions about a GPU.

    python -m benchmarks.scale [--faces 100000000] [--gpus 64]

Reads benchmarks/results/streaming.json (packing and reading) and ranks.json (what a step exchanges), counts the
arithmetic of the networks, writes benchmarks/results/scale.{json,md}, and puts the table into docs/scale.md.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeface.files import read_json, write_bytes, write_json
from edgeface.provenance import commit, cpu, versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- python -m benchmarks.scale -->", "<!-- end -->"


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What cannot be measured on a machine without a GPU.

    Attributes:
        gpu_tflops: Arithmetic that a GPU reaches on these networks in bf16: a fifth of the 990 of an H100's data sheet.
        student_images_per_s: Pictures a second of one GPU that trains `edge_s`, which is bound by launches and memory.
        gpus_per_machine: GPUs that share a host.
        cores_per_gpu: Host cores of each GPU.
        link_gb_per_s: What one machine sends to the others, of the 50 GB/s of a 400 Gbit/s link.
        collective_us: A small collective over all GPUs, which everybody waits for.
        batch_per_gpu: Samples of a step on one GPU.
        epochs: Passes of teacher, student and QAT.
    """

    gpu_tflops: float = 200.0
    student_images_per_s: float = 20_000.0
    gpus_per_machine: int = 8
    cores_per_gpu: int = 12
    link_gb_per_s: float = 25.0
    collective_us: float = 50.0
    batch_per_gpu: int = 256
    epochs: tuple[int, int, int] = (10, 10, 1)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates of one core, all from processor time, and what a sample and a step hold.

    Attributes:
        bytes_per_sample: Of a shard, by encoding.
        pack_per_s: Samples a second that are packed.
        batches_per_s: Samples a second that are streamed, shuffled and augmented, by encoding.
        in_order_per_s: Samples a second that are only decoded, by encoding.
        places_per_s: Samples a second whose places in a shard are found, which each process does for all samples.
        gradient_bytes: Of a step, by network.
        collectives: Of a step that everybody waits for, by network.
        gflop: Forward, and forward with backward, of one picture: VGG16 at 96 px.
    """

    bytes_per_sample: dict[str, float]
    pack_per_s: float
    batches_per_s: dict[str, float]
    in_order_per_s: dict[str, float]
    places_per_s: dict[str, float]
    gradient_bytes: dict[str, float]
    collectives: dict[str, float]
    gflop: tuple[float, float]


def measured() -> Measured:
    """From the committed results."""
    rates: dict[str, Any] = read_json(RESULTS / "streaming.json")["rates"]
    steps = {row["case"].split(",")[0]: row for row in read_json(RESULTS / "ranks.json")["rows"][:2]}
    per_s = {row["what"]: 1e6 / row["cpu_us"] for row in (*rates["packing"], *rates["reading"])}
    kinds = ("png", "jpg")
    return Measured(
        bytes_per_sample={kind: float(rates["bytes_per_sample"][kind]) for kind in kinds},
        pack_per_s=per_s["shards, png, 1 processes"],
        batches_per_s={kind: per_s[f"{kind}: streamed batches, shuffled and augmented"] for kind in kinds},
        in_order_per_s={kind: per_s[f"{kind}: streamed crops, in order"] for kind in kinds},
        places_per_s={
            row["what"].removeprefix("places, by "): 1e6 / row["cpu_us"]
            for row in read_json(RESULTS / "streaming.json")["places"]["rows"]
            if row["what"].startswith("places")
        },
        gradient_bytes={name: row["bytes"]["gradients"] for name, row in steps.items()},
        collectives={name: row["collectives"]["statistics and losses"] for name, row in steps.items()},
        gflop=arithmetic(),
    )


def arithmetic() -> tuple[float, float]:
    """GFLOP of one picture through VGG16 at 96 px: forward, and with the backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from edgeface.models.network import build_network, model_spec
    from edgeface.specs import NetworkSpec, output_spec

    spec = NetworkSpec(backbone="vgg16", input_px=96)
    network = build_network(spec, model_spec(spec, (output_spec("gender"),))).train()
    with FlopCounterMode(display=False) as counter:
        outputs = network(torch.zeros(2, 3, 96, 96))
        forward = counter.get_total_flops() / 2e9
        outputs["gender"].sum().backward()
    return forward, counter.get_total_flops() / 2e9


def plan(found: Measured, assumed: Assumed, *, faces: int, gpus: int) -> dict[str, float]:
    """Hours, bytes and rates; every figure of the page.

    Args:
        found: Measured rates.
        assumed: What is taken for granted.
        faces: Samples.
        gpus: GPUs, one process each.
    """
    cores = gpus * assumed.cores_per_gpu
    compute = gpus * assumed.gpu_tflops * 1e3 / found.gflop[1]
    asked = gpus * assumed.gpu_tflops * 1e3 / found.gflop[0]
    as_built = gpus * found.batches_per_s["jpg"]
    all_cores = cores * found.batches_per_s["jpg"]
    step_s = assumed.batch_per_gpu * gpus / all_cores
    exchanged = 2.0 * found.gradient_bytes["VGG16"] / (assumed.link_gb_per_s * 1e9)
    places_h, headers_h = (faces / found.places_per_s[way] / 3600 for way in ("tables", "headers"))
    epochs = sum(assumed.epochs)
    decode_h = faces / as_built / 3600
    all_h = faces / min(all_cores, compute) / 3600
    return {
        "png_tb": faces * found.bytes_per_sample["png"] / 1e12,
        "jpg_tb": faces * found.bytes_per_sample["jpg"] / 1e12,
        "shards": -(-faces // 4096),
        "shard_mb": 4096 * found.bytes_per_sample["jpg"] / 1e6,
        "pack_core_h": faces / found.pack_per_s / 3600,
        "pack_h": faces / found.pack_per_s / cores / 3600,
        "teacher_compute_images_per_s": compute,
        "teacher_compute_epoch_h": faces / compute / 3600,
        "student_compute_epoch_h": faces / (gpus * assumed.student_images_per_s) / 3600,
        "as_built_images_per_s": as_built,
        "as_built_epoch_h": decode_h,
        "places_epoch_h": places_h,
        "headers_epoch_h": headers_h,
        "all_cores_images_per_s": all_cores,
        "all_cores_epoch_h": faces / all_cores / 3600,
        "answers_h": faces / min(gpus * found.in_order_per_s["jpg"], asked) / 3600,
        "answers_gb": faces * 140 * 2 / 1e9,
        "steps_per_epoch": faces // (gpus * assumed.batch_per_gpu),
        "step_ms": 1e3 * step_s,
        "exchange_ms": 1e3 * exchanged,
        "awaited_ms": found.collectives["VGG16"] * assumed.collective_us / 1e3,
        "total_as_built_h": epochs * (decode_h + places_h),
        "total_headers_h": epochs * (decode_h + headers_h),
        "total_all_cores_h": epochs * (all_h + places_h),
    }


def table(it: dict[str, float], assumed: Assumed, *, faces: int, gpus: int) -> str:
    def row(what: str, figure: str, origin: str) -> str:
        return f"| {what} | {figure} | {origin} |"

    epochs = " + ".join(map(str, assumed.epochs))
    lines = [
        f"| {faces / 1e6:g} M faces, {gpus} GPUs | | from |",
        "|---|---:|---|",
        row("shards of JPEG, 96 px", f"{it['jpg_tb']:.2f} TB", "measured"),
        row("shards of PNG (the default), 96 px", f"{it['png_tb']:.2f} TB", "measured"),
        row("shards of 4,096, JPEG", f"{it['shards']:,.0f} of {it['shard_mb']:.0f} MB", "measured"),
        row("packing", f"{it['pack_core_h']:,.0f} core-hours", "measured"),
        row("packing by all host cores", f"{it['pack_h']:.2f} h", "measured × assumed cores"),
        row("stored answers, 140 values", f"{it['answers_gb']:.0f} GB fp16", "arithmetic"),
        row("asking the teacher once", f"{it['answers_h']:.2f} h", "measured decoding, one core a GPU"),
        row("steps of an epoch", f"{it['steps_per_epoch']:,.0f}", f"assumed {assumed.batch_per_gpu} a GPU"),
        row("epoch: teacher's arithmetic", f"{it['teacher_compute_epoch_h']:.3f} h", "counted ÷ assumed GPU"),
        row("epoch: student's arithmetic", f"{it['student_compute_epoch_h']:.3f} h", "assumed GPU"),
        row("epoch: decoding and augmenting, as built", f"{it['as_built_epoch_h']:.2f} h", "measured, one core a GPU"),
        row("epoch: finding samples by tables", f"{it['places_epoch_h']:.3f} h", "measured, in each process"),
        row("epoch: finding samples by headers", f"{it['headers_epoch_h']:.2f} h", "measured, in each process"),
        row("epoch: decoding and augmenting on all cores", f"{it['all_cores_epoch_h']:.3f} h", "measured × cores"),
        row("gradients of a teacher's step, all-reduced", f"{it['exchange_ms']:.1f} ms", "counted ÷ assumed link"),
        row("other collectives of a teacher's step", f"{it['awaited_ms']:.1f} ms", "counted × assumed latency"),
        row("a step, where all cores decode", f"{it['step_ms']:.0f} ms", "measured × cores"),
        row(f"all stages ({epochs} epochs), as built", f"{it['total_as_built_h']:.1f} h", ""),
        row("… of shards without tables of places", f"{it['total_headers_h']:.1f} h", ""),
        row("… with tables, and all cores decoding", f"{it['total_all_cores_h']:.1f} h", ""),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=100_000_000)
    parser.add_argument("--gpus", type=int, default=64)
    arguments = parser.parse_args()
    found, assumed = measured(), Assumed()
    figures = plan(found, assumed, faces=arguments.faces, gpus=arguments.gpus)
    text = table(figures, assumed, faces=arguments.faces, gpus=arguments.gpus)
    write_json(
        RESULTS / "scale.json",
        {
            "faces": arguments.faces,
            "gpus": arguments.gpus,
            "measured": asdict(found),
            "assumed": asdict(assumed),
            "plan": figures,
            "conditions": {"machine": cpu(), "versions": versions(), "commit": commit()},
        },
    )
    write_bytes(RESULTS / "scale.md", f"# A plan\n\nSee docs/scale.md.\n\n{text}".encode())
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_bytes(PAGE, f"{before}{BEGIN}\n{text}{END}{after}".encode())


if __name__ == "__main__":
    main()
