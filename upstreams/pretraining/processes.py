"""The processes of one training, as torchrun starts them: each sees its share of every batch, and weights stay equal.

Gradients are averaged in one piece after the backward pass. DistributedDataParallel would overlap that with it, but
regroups its pieces after the first step, so that with three processes or more a resumed run may end in other bits.
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

PATIENCE = timedelta(hours=12)  # that processes wait for one which looks a corpus over
ECHO = 1.0  # seconds in which a launcher may pass the same signal on again


def processes() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are: torchrun's RANK and WORLD_SIZE, or 0 and 1."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Device of this process, in a group with torchrun's other processes; inside another such context, of that group.

    Processes that left it may not find together again: who trains more than once puts it around all of that.
    device: as torch writes it; each process takes its own GPU of "cuda". Raises UpstreamError where there is no such.
    """
    place = own(device)
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


def own(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UpstreamError(f"no device '{device}'; use cpu, cuda or cuda:NUMBER") from error
    if place.type != "cuda":
        return place
    if place.index is not None and processes()[1] > 1:
        raise UpstreamError(f"'{device}' is one GPU for all processes; give cuda, of which each takes its own")
    number = int(os.environ.get("LOCAL_RANK", "0")) if place.index is None else place.index
    found = torch.cuda.device_count()
    if number >= found:
        raise UpstreamError(f"no GPU {number} here, but {found} in all; use --device cpu, or fewer processes")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def anywhere(flags: Sequence[bool]) -> list[bool]:
    """Which of the flags are set in any process; every process has to call it, and waits for the others."""
    if processes()[1] == 1:
        return list(flags)
    table = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(table, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in table.tolist()]


def mean(table: Tensor) -> Tensor:
    """Mean of the processes' tables, on the CPU in double precision, added up in the same order everywhere."""
    table = table.detach().to("cpu", torch.float64)
    if processes()[1] == 1:
        return table
    tables = [torch.empty_like(table) for _ in range(processes()[1])]
    distributed.all_gather(tables, table)
    return torch.stack(tables).mean(0)


def share(tensors: Iterable[Tensor]) -> None:
    """Give all processes those of the first."""
    if processes()[1] > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; it is zero where a parameter took no part."""
    if processes()[1] == 1:
        return
    taking_part = anywhere([parameter.grad is not None for parameter in parameters])
    used = [parameter for parameter, part in zip(parameters, taking_part, strict=True) if part]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in used]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(together)
    pieces = together.div_(processes()[1]).split([each.numel() for each in used])
    for parameter, piece in zip(used, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


class Interruption:
    """Notes that SIGINT or SIGTERM arrived, so that a step can be finished first; a second one does not wait."""

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
    """Signals are noted inside, and treated as before afterwards; outside of the main thread they are left alone."""
    noted, previous = Interruption(), {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, noted)
    except ValueError:  # only the main thread may ask for signals
        pass
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
