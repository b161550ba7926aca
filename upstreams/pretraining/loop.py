"""The loop that trains every pre-training method.

The random numbers of a step depend only on (seed, step, micro-batch, process), the learning rate depends only on the
step, and the caller provides the batches. A training that is resumed from a `TrainingState` therefore continues bit for
bit as if it had not stopped, on the CPU with the same number of threads. On a GPU this holds if the GPU's kernels are
deterministic. Kernels that add in order of arrival, such as the gradient of an interpolation, are not, unless the user
requests deterministic algorithms from torch, which some operations lack.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.pretraining.methods import AudioBatch, Method, Recipe
from upstreams.pretraining.optimization import (
    learning_rate,
    moments,
    optimizer_of,
    set_moments,
    set_rates,
    trainable_parameters,
)
from upstreams.pretraining.processes import (
    any_process,
    average_gradients,
    broadcast,
    interruption,
    mean_over_processes,
    process_group,
    processes,
)
from upstreams.safety.allow_list import short_list
from upstreams.safety.checkpoints import not_finite


@dataclass(frozen=True)
class Schedule:
    """The settings of a training, apart from the method and its batches.

    recipe: that of the method, with the user's changes. accumulate: micro-batches per step, whose gradients are
    averaged. device: cpu, cuda or cuda:NUMBER. every: steps between points of the history. save_every, report_every:
    the least number of seconds between saved states, and between reports.
    """

    recipe: Recipe
    seed: int = 0
    accumulate: int = 1
    device: str = "cpu"
    every: int = 50
    save_every: float = 300.0
    report_every: float = 1.0


class TrainingState(NamedTuple):
    """Everything that a training resumes from, on the CPU; it does not depend on the time at which it was saved.

    tensors: "method.NAME" and "optimizer.PARAMETER.MOMENT". facts: JSON values; "step": the number of completed steps.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class CurvePoint(NamedTuple):
    """Means, since the last point, of the terms and of "gradient", the norm before clipping; step: completed steps."""

    step: int
    terms: dict[str, float]


class TrainingProgress(NamedTuple):
    """The progress of a training.

    terms: as in `CurvePoint`, since the last point of the history. lr: of the last step. waiting: share of the time
    spent waiting for batches; an upper bound on a GPU, which may compute meanwhile. seconds: since this call of `fit`
    began; steps before the resumed state are not included.
    """

    step: int
    steps: int
    terms: dict[str, float]
    lr: float
    waiting: float
    seconds: float


History = list[CurvePoint]


def fit(
    method: Method,
    batches: Callable[[int], Iterable[AudioBatch]],
    plan: Schedule,
    *,
    state: TrainingState | None = None,
    save: Callable[[TrainingState], None] = lambda state: None,
    report: Callable[[TrainingProgress], None] = lambda progress: None,
) -> History:
    """Train a method in place, in this and all other processes that torchrun started; return the history of its terms.

    batches: maps a step (from 0) to the micro-batches of this process from that step on, `plan.accumulate` of equal
    size for each step. state: the state to resume from. save: called every `plan.save_every` seconds, and after SIGINT
    or SIGTERM, before KeyboardInterrupt is raised; not at the end. report: called at each point of the history and
    every `plan.report_every` seconds. Only the first process calls `save` and `report`. Raises UpstreamError if a term,
    gradient or weight is not finite (such a state is never saved), if the batches end too early, or if the state
    belongs to another method.
    """
    check_schedule(plan)
    with process_group(plan.device) as device, torch.random.fork_rng([device] if device.type == "cuda" else []):
        if processes()[1] > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(method)  # statistics of the whole batch; gloo, on CPUs, has none
        loop = PretrainingLoop(method.to(device).train(), plan, save, report)
        if state is not None:
            loop.resume(state)
        loop.prepare(batches)
        broadcast(method.state_dict().values())
        loop.run(batches)
    return loop.history


def check_schedule(plan: Schedule) -> None:
    if plan.recipe.precision not in ("bf16", "fp32"):
        raise UpstreamError(f"no precision '{plan.recipe.precision}'; use bf16 or fp32")
    if plan.recipe.steps < 0 or plan.accumulate < 1 or plan.every < 1:
        raise UpstreamError("a training has 0 steps or more, each of 1 part or more, and reports after 1 or more")


class PretrainingLoop:
    """A running training, on the device of its method."""

    def __init__(
        self,
        method: Method,
        plan: Schedule,
        save: Callable[[TrainingState], None],
        report: Callable[[TrainingProgress], None],
    ) -> None:
        self.method, self.plan, self.save, self.report = method, plan, save, report
        self.device = next(method.parameters()).device
        self.optimizer = optimizer_of(method, plan.recipe)
        self.parameters = list(trainable_parameters(method).values())
        self.rank = processes()[0]
        self.step = 0
        self.history: History = []
        self.names: list[str] = []  # of the terms
        self.settled: list[list[float]] = []  # terms of each step since the last point of the history
        self.recent: list[Tensor] = []  # terms of the steps after these, still on the device
        self.saved: int | None = None  # step of the last state
        self.waited = 0.0  # seconds

    def state(self) -> TrainingState:
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        tensors |= moments(self.optimizer, self.method)
        facts = {"step": self.step, "names": self.names, "settled": self.settled, "history": self.history}
        plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        return TrainingState(plain, json.loads(json.dumps(facts)))

    def resume(self, state: TrainingState) -> None:
        weights = {name: tensor for name, tensor in state.tensors.items() if name.startswith("method.")}
        try:
            self.method.load_state_dict({name.removeprefix("method."): weights[name] for name in weights})
        except RuntimeError as error:
            raise UpstreamError("the training state is of another method, or another size of it; start anew") from error
        rest = {name: tensor for name, tensor in state.tensors.items() if name not in weights}
        set_moments(self.optimizer, self.method, rest)
        self.step = self.saved = state.facts["step"]
        self.names, self.settled = list(state.facts["names"]), [list(row) for row in state.facts["settled"]]
        self.history = [CurvePoint(step, dict(terms)) for step, terms in state.facts["history"]]

    def prepare(self, batches: Callable[[int], Iterable[AudioBatch]]) -> None:
        """Before the first step of a new training, let the method of the first process prepare itself from batches."""
        failed = None
        if self.rank == 0 and self.saved is None and self.plan.recipe.steps:
            feed = iter(batches(0))
            torch.manual_seed(seed_of(self.plan.seed, -1, 0, 0))
            try:
                self.method.prepare(on_device(batch, self.device) for batch in feed)
            except Exception as error:  # the other processes must not wait for this one
                failed = error
            finally:
                close_feed(feed)
        if any_process([failed is not None])[0]:
            raise failed or SystemExit(2)  # the first process reports the error

    def run(self, batches: Callable[[int], Iterable[AudioBatch]]) -> None:
        """Train to the end of the plan."""
        self.started = self.shown = saved = time.perf_counter()
        if mean_over_processes(torch.tensor([self.step])).item() != self.step:
            raise UpstreamError("the processes resume from different states; put the output where all of them see it")
        steps, feed = self.plan.recipe.steps, iter(batches(self.step))
        try:
            with interruption() as signals:
                while self.step < steps:
                    self._learn(feed)
                    if self.step % self.plan.every == 0 or self.step == steps:
                        self._add_point()
                    keep, show = self._due(saved, self.plan.save_every), self._due(self.shown, self.plan.report_every)
                    stop, keep, show = any_process([signals.noted, keep, show])
                    if show and self.recent:
                        self._settle()
                        self._show(self._means())
                    if stop or keep:
                        self._save()
                        saved = time.perf_counter()
                    if stop:
                        raise KeyboardInterrupt
        finally:
            close_feed(feed)
        self._refuse(not_finite(self.method.state_dict()), self.step)

    def _due(self, last: float, every: float) -> bool:
        """Whether `every` seconds have passed since `last`, in the first process and before the last step."""
        ends = self.step == self.plan.recipe.steps
        return self.rank == 0 and not ends and time.perf_counter() - last >= every

    def _learn(self, feed: Iterator[AudioBatch]) -> None:
        """Perform one optimiser step with the averaged gradients of all micro-batches."""
        recipe, done = self.plan.recipe, self.step / self.plan.recipe.steps
        terms = [self._part(self._next(feed), part, done) for part in range(self.plan.accumulate)]
        average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if recipe.clip is None else recipe.clip)
        set_rates(self.optimizer, recipe, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        with torch.no_grad():
            self.method.stepped(self.step / recipe.steps)
        broadcast(self.method.buffers())
        self.recent.append(torch.cat([torch.stack(terms).mean(0), norm[None]]))

    def _part(self, batch: AudioBatch, part: int, done: float) -> Tensor:
        """Add the gradients of a micro-batch and return its terms."""
        plan = self.plan
        torch.manual_seed(seed_of(plan.seed, self.step, part, self.rank))
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=plan.recipe.precision == "bf16"):
                terms = self.method(batch, done).terms
            (terms["loss"] / plan.accumulate).backward()
        except torch.cuda.OutOfMemoryError as error:
            rows, seconds = len(batch.lengths), batch.waveforms.shape[1] / self.method.sample_rate
            raise UpstreamError(
                f"the GPU has too little memory for {rows} stretches of {seconds:.3g} s at once; take each step in more"
                f" parts, such as --accumulate {2 * plan.accumulate}"
            ) from error
        self.names = [*terms, "gradient"]
        return torch.stack([term.detach().to(self.device, torch.float32) for term in terms.values()])

    def _next(self, feed: Iterator[AudioBatch]) -> AudioBatch:
        start = time.perf_counter()
        batch = next(feed, None)
        self.waited += time.perf_counter() - start
        if batch is None:
            raise UpstreamError(f"the batches end at step {self.step} of {self.plan.recipe.steps}; give more of them")
        return on_device(batch, self.device)

    def _add_point(self) -> None:
        self._settle()
        terms = self._means()
        self.history.append(CurvePoint(self.step, terms))
        self.settled = []
        self._show(terms)

    def _means(self) -> dict[str, float]:
        """Return the means of the terms since the last point."""
        columns = zip(*self.settled, strict=True)
        return {name: fmean(column) for name, column in zip(self.names, columns, strict=True)}

    def _show(self, terms: dict[str, float]) -> None:
        self.shown = time.perf_counter()
        if self.rank == 0:
            recipe, seconds = self.plan.recipe, self.shown - self.started
            lr = learning_rate(recipe, self.step - 1)
            self.report(TrainingProgress(self.step, recipe.steps, terms, lr, self.waited / seconds, seconds))

    def _settle(self) -> None:
        """Collect the terms of recent steps from all processes; raises UpstreamError if one is not finite."""
        if not self.recent:
            return
        rows = mean_over_processes(torch.stack(self.recent)).tolist()
        for step, row in enumerate(rows, self.step - len(rows) + 1):
            self._refuse([name for name, term in zip(self.names, row, strict=True) if not math.isfinite(term)], step)
        self.settled += rows
        self.recent = []

    def _save(self) -> None:
        self._settle()
        if self.rank == 0:
            state = self.state()
            self._refuse(not_finite(state.tensors), self.step)
            self.save(state)
        self.saved = self.step

    def _refuse(self, broken: list[str], step: int) -> None:
        if broken:
            last = "no state was saved" if self.saved is None else f"the last state saved is of step {self.saved}"
            fault = f"{short_list(broken)} {'is' if len(broken) == 1 else 'are'} not finite at step {step}"
            raise UpstreamError(f"{fault}; lower --lr or train with --precision fp32; {last}")


def seed_of(seed: int, step: int, part: int, rank: int) -> int:
    """Return the seed of the random numbers of a micro-batch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {part} {rank}".encode()).digest()[:8], "big")


def on_device(batch: AudioBatch, device: torch.device) -> AudioBatch:
    """Return the batch on a device; on the CPU a copy, as sums may depend on the alignment of memory."""
    move = partial(_pinned, device=device) if device.type == "cuda" else partial(Tensor.to, device=device, copy=True)
    labels = {kind: move(numbers) for kind, numbers in batch.labels.items()}
    return AudioBatch(move(batch.waveforms), move(batch.lengths), labels)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


def close_feed(feed: Iterator[AudioBatch]) -> None:
    """Close a generator of batches, so that it can release its resources."""
    if isinstance(feed, Generator):
        feed.close()
