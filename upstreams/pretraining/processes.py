"""The processes of one training, started by torchrun: each gets a share of every batch, and all weights stay equal.

Gradients are averaged in one operation after the backward pass. DistributedDataParallel would overlap the two, but it
regroups its buckets after the first step, so that with three or more processes a resumed run may differ in some bits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from torch import Tensor, distributed, nn

from upstreams.base import UpstreamError

PATIENCE = timedelta(hours=12)  # for which processes wait for one that prepares a corpus
ECHO = 1.0  # seconds within which a repeated signal is taken for a copy forwarded by the launcher


def processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes: torchrun's RANK and WORLD_SIZE, or 0 and 1."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the group of torchrun's processes and yield the device of this process; nested contexts share the group.

    Processes may be unable to rejoin after they have left, so one context must enclose several trainings.
    device: in torch's notation; for "cuda", each process takes its own GPU. Raises UpstreamError for unknown devices.
    """
    place = own_device(device)
    if processes()[1] == 1 or distributed.is_initialized():
        yield place
        return
    if "MASTER_ADDR" not in os.environ:
        raise UpstreamError("WORLD_SIZE is set but not MASTER_ADDR; start by torchrun, or unset WORLD_SIZE and RANK")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield place
    finally:
        distributed.destroy_process_group()


def own_device(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UpstreamError(f"no device '{device}'; use cpu, cuda or cuda:NUMBER") from error
    if place.type != "cuda":
        return place
    if place.index is not None and processes()[1] > 1:
        raise UpstreamError(f"'{device}' is one GPU for all processes; give cuda, of which each takes its own")
    number = int(os.environ.get("LOCAL_RANK", "0")) if place.index is None else place.index
    count = torch.cuda.device_count()
    if number >= count:
        raise UpstreamError(f"no GPU {number} here, but {count} in all; use --device cpu, or fewer processes")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def any_process(flags: Sequence[bool]) -> list[bool]:
    """Return whether each flag is set in any process; all processes must call this, and wait for each other."""
    if processes()[1] == 1:
        return list(flags)
    table = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(table, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in table.tolist()]


def mean_over_processes(table: Tensor) -> Tensor:
    """Return the mean of a table over all processes, on the CPU in float64, summed in the same order in each."""
    table = table.detach().to("cpu", torch.float64)
    if processes()[1] == 1:
        return table
    tables = [torch.empty_like(table) for _ in range(processes()[1])]
    distributed.all_gather(tables, table)
    return torch.stack(tables).mean(0)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of the first process to all others, in place."""
    if processes()[1] > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; a process without a gradient counts as zero."""
    if processes()[1] == 1:
        return
    taking_part = any_process([parameter.grad is not None for parameter in parameters])
    used = [parameter for parameter, part in zip(parameters, taking_part, strict=True) if part]
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in used]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(together)
    pieces = together.div_(processes()[1]).split([parameter.numel() for parameter in used])
    for parameter, piece in zip(used, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


class Interruption:
    """Signal handler that records SIGINT or SIGTERM, so that a step can end first; a second one interrupts at once."""

    def __init__(self) -> None:
        self.since: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.since is None:
            self.since = time.monotonic()
        elif time.monotonic() - self.since > ECHO:
            raise KeyboardInterrupt

    @property
    def noted(self) -> bool:
        return self.since is not None


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Record signals within the block and restore the handlers afterwards, in the main thread only."""
    noted, previous = Interruption(), {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, noted)
    except ValueError:  # only the main thread may set signal handlers
        pass
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
