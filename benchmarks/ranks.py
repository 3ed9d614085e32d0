"""What several processes cost a training: collectives of a step, their bytes, and processor time for a picture.

    python -m benchmarks.ranks [--rounds 3]

One process and two (gloo, one thread each) take turns at the same batches of random pictures. How many collectives
there are, and what they carry, depends on the network alone and is counted. Times are medians over rounds, without each
training's first step, of processor time added up over processes, which other programs on the machine disturb less than
the clock. Writes benchmarks/results/ranks.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill import ranks
from distill.objective import Objective
from distill.train import train
from edgeface.files import write_bytes, write_json
from edgeface.models.network import build_network, model_spec
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import DistillSpec, LossSpec, NetworkSpec, QatSpec, TrainSpec, output_spec
from quantize.calibrate import calibrate
from quantize.qat import milestones, prepare

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = ("gender", "smile", "expression", "age")


@dataclass(frozen=True, kw_only=True)
class Case:
    network: NetworkSpec
    batch: int
    steps: int
    quantized: bool = False


CASES = {
    "VGG16, 96 px": Case(network=NetworkSpec(backbone="vgg16", input_px=96), batch=8, steps=3),
    "edge_s, 64 px": Case(network=NetworkSpec(backbone="edge_s", input_px=64), batch=64, steps=6),
    "edge_s, 64 px, fake-quantized": Case(
        network=NetworkSpec(backbone="edge_s", input_px=64), batch=64, steps=6, quantized=True
    ),
}


@dataclass
class Batch:
    images: Tensor
    labels: dict[str, Tensor]
    ids: Tensor


class Batches:
    """Random pictures and labels."""

    def __init__(self, case: Case) -> None:
        self.case, self.steps_per_epoch = case, case.steps

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        size, px = self.case.batch, self.case.network.input_px
        for step in range(start_step, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(0, 256, (size, 3, px, px), generator=generator).float()
            labels = {name: torch.randint(0, 2, (size,), generator=generator) for name in TASKS if name != "age"}
            labels["age"] = 60.0 * torch.rand(size, 1, generator=generator).expand(-1, 2)
            rows = {name: ranks.own_rows(values) for name, values in labels.items()}
            yield Batch(ranks.own_rows(images), rows, ranks.own_rows(torch.arange(size)))


def work(name: str, out: Path) -> None:
    """One process: train, count, and say so where it leads."""
    torch.set_num_threads(1)
    case = CASES[name]
    model = model_spec(case.network, tuple(output_spec(task) for task in TASKS))
    counted: Counter[str] = Counter()
    carried: Counter[str] = Counter()
    plain_reduce, plain_gather = dist.all_reduce, dist.all_gather

    def reduce(tensor: Tensor, *given: Any, **named: Any) -> Any:
        kind = "gradients" if named.get("async_op") else "statistics and losses"
        counted[kind] += 1
        carried[kind] += tensor.nbytes
        return plain_reduce(tensor, *given, **named)

    def gather(parts: list[Tensor], tensor: Tensor, *given: Any, **named: Any) -> Any:
        counted["statistics and losses"] += 1
        carried["statistics and losses"] += tensor.nbytes
        return plain_gather(parts, tensor, *given, **named)

    with ranks.session(), mock.patch.object(dist, "all_reduce", reduce), mock.patch.object(dist, "all_gather", gather):
        network: nn.Module = build_network(case.network, model, seed=0)
        began: list[float] = []
        follow: Callable[[nn.Module, int, int], None] | None = None
        batches = Batches(case)
        if case.quantized:
            spec = QatSpec()
            network = prepare(network.eval(), spec)  # type: ignore[arg-type]
            calibrate(network, (batch.images for batch in batches.epoch(0)), limit=1)  # type: ignore[arg-type]
            follow = milestones(spec)
        counted.clear()
        carried.clear()

        def before(network: nn.Module, step: int, steps: int) -> None:
            if follow is not None:
                follow(network, step, steps)
            if step == 1:  # the first step imports, and lays out memory
                began.append(time.process_time())

        train(
            network,
            Objective(model=model, weights=dict.fromkeys(TASKS, 1.0), loss=LossSpec(), distill=DistillSpec()),
            batches,
            spec=TrainSpec(epochs=1, batch=case.batch, ema=0.99, checkpoint_s=1e9),
            seed=0,
            key="k",
            partial=out / f"{ranks.rank()}.partial",
            input_px=case.network.input_px,
            before_step=before,
        )
        told = {
            "cpu_s": time.process_time() - began[0],
            "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "collectives": {kind: number / case.steps for kind, number in counted.items()},
            "bytes": {kind: number / case.steps for kind, number in carried.items()},
        }
        (out / f"{ranks.rank()}.json").write_text(json.dumps(told))


def run(name: str, *, world: int) -> dict[str, Any]:
    """Train one case in some processes; processor time over all, the rest as the first one says."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        free.close()
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks", "--case", name, "--out", folder],
                env={**os.environ, **address, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
                | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world)
        ]
        codes = [process.wait() for process in processes]
        assert not any(codes), codes
        told = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return {**told[0], "cpu_s": sum(each["cpu_s"] for each in told)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# What several processes cost a training",
        "",
        "`python -m benchmarks.ranks`, conditions in the JSON. Counted in one of two processes; a step's collectives",
        "carry gradients (in buckets, while the backward pass goes on), and statistics of batch-norm or ranges of",
        "fake-quantization, losses and flags (one after another, each awaited). Processor time of a picture is that of",
        "two processes over that of one, here: small batches, gloo over the loopback, a median of rounds.",
        "",
        "| network | parameters | collectives for gradients | MB | other collectives | kB | processor time, 2 : 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        number, size = row["collectives"], row["bytes"]
        lines.append(
            f"| {row['case']} | {row['parameters']:,} | {number['gradients']:.0f} | {size['gradients'] / 1e6:.1f} "
            f"| {number['statistics and losses']:.0f} | {size['statistics and losses'] / 1e3:.1f} "
            f"| {row['cpu_ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        work(arguments.case, arguments.out)
        return
    rows = []
    for name, case in CASES.items():
        rounds = [(run(name, world=1), run(name, world=2)) for _ in range(arguments.rounds)]
        one, two = (statistics.median(pair[place]["cpu_s"] for pair in rounds) for place in (0, 1))
        kept = {key: rounds[-1][1][key] for key in ("parameters", "collectives", "bytes")}
        pictures = (case.steps - 1) * case.batch
        rows.append(
            {
                "case": name,
                "batch": case.batch,
                "cpu_ms_per_picture": {"1": 1e3 * one / pictures, "2": 1e3 * two / pictures},
                "cpu_ratio": two / one,
                **kept,
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    conditions = {"machine": cpu(), "versions": versions(), "commit": commit(), "load": os.getloadavg()}
    write_json(RESULTS / "ranks.json", {"rounds": arguments.rounds, "conditions": conditions, "rows": rows})
    write_bytes(RESULTS / "ranks.md", table(rows).encode())


if __name__ == "__main__":
    main()
