"""A plain script for `torchrun`, as `bench.training` runs it: it knows nothing of Ergon.

    torchrun --nproc-per-node 2 bench/plain_script.py FOLDER

Trains, and is led through FIFOs in FOLDER. Rank 0 writes the moment after the first step to `said` (Unix time, s). For
each number in `go-RANK` a rank takes so many steps, and rank 0 writes how long each took (s, JSON). 0 ends it.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

WIDTH, BATCH = 256, 32


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())]
    model = DistributedDataParallel(torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def steps(number: int) -> list[float]:
        marks = [time.perf_counter()]
        for _ in range(number):
            optimizer.zero_grad()
            model(torch.randn(BATCH, WIDTH)).square().mean().backward()
            optimizer.step()
            marks.append(time.perf_counter())
        return [end - start for start, end in pairwise(marks)]

    steps(1)
    rank = dist.get_rank()
    if rank == 0:
        (folder / "said").write_text(f"{time.time()}\n")
    while number := int((folder / f"go-{rank}").read_text()):
        took = steps(number)
        if rank == 0:
            (folder / "said").write_text(json.dumps(took) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
