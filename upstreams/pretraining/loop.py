"""Pre-training: the one loop that trains every method.

Everything random in a step is drawn anew from (seed, step, part, process), rates follow from the step, and batches
come from whoever feeds the loop: a training that is resumed from a `TrainingState` goes on bit for bit as if it had
never stopped, on the CPU with the same number of threads. On a GPU this holds as far as the GPU's kernels repeat
themselves. Kernels that add in the order of arrival, such as the gradient of an interpolation, do not, unless the user
asks torch for deterministic algorithms, which some methods do not have.
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
from upstreams.pretraining.optimization import learning_rate, moments, optimizer_of, set_moments, set_rates, trained
from upstreams.pretraining.processes import anywhere, average_gradients, interruption, joined, mean, processes, share
from upstreams.safety.allow_list import listed
from upstreams.safety.checkpoints import not_finite


@dataclass(frozen=True)
class Schedule:
    """A training, beside the method and its batches.

    recipe: the method's own, with what the user changed. accumulate: micro-batches in a step, whose gradients are
    averaged. device: cpu, cuda or cuda:NUMBER. every: steps from one point of the history to the next. save_every,
    report_every: seconds from one saved state to the next, and from one report, at most.
    """

    recipe: Recipe
    seed: int = 0
    accumulate: int = 1
    device: str = "cpu"
    every: int = 50
    save_every: float = 300.0
    report_every: float = 1.0


class TrainingState(NamedTuple):
    """All there is to resume from, on the CPU: a function of method, plan and batches, not of when it was saved.

    tensors: "method.NAME" and "optimizer.PARAMETER.MOMENT". facts: JSON values; "step": those that are done.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class CurvePoint(NamedTuple):
    """Means of the terms, and of "gradient", its norm before it is clipped, since the last point; step: those done."""

    step: int
    terms: dict[str, float]


class TrainingProgress(NamedTuple):
    """How far a training is.

    terms: as in Point, since the last one of the history. lr: of the last step. waiting: share of the time spent
    waiting for batches; on a GPU, which may have had work meanwhile, at most that. seconds: since this call of `fit`
    began, which did not do the steps before its state.
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
    """Train a method in place, in this process and those that torchrun started beside it; what its terms were.

    batches: gives this process's micro-batches from a step (from 0) on, `plan.accumulate` of equal size for each step.
    state: to go on from. save: called now and then, and when SIGINT or SIGTERM arrived, after which KeyboardInterrupt
    is raised; not at the end. report: called at each point of the history and in between. Only the first process calls
    them. Raises UpstreamError where a term, gradient or weight is not finite, which is never saved, where the batches
    end too early, and where the state is of another method.
    """
    check(plan)
    with joined(plan.device) as device, torch.random.fork_rng([device] if device.type == "cuda" else []):
        if processes()[1] > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(method)  # statistics of the whole batch; gloo, on CPUs, has none
        loop = PretrainingLoop(method.to(device).train(), plan, save, report)
        if state is not None:
            loop.resume(state)
        loop.prepare(batches)
        share(method.state_dict().values())
        loop.run(batches)
    return loop.history


def check(plan: Schedule) -> None:
    if plan.recipe.precision not in ("bf16", "fp32"):
        raise UpstreamError(f"no precision '{plan.recipe.precision}'; use bf16 or fp32")
    if plan.recipe.steps < 0 or plan.accumulate < 1 or plan.every < 1:
        raise UpstreamError("a training has 0 steps or more, each of 1 part or more, and reports after 1 or more")


class PretrainingLoop:
    """A training under way, on the device that its method is on."""

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
        self.parameters = list(trained(method).values())
        self.rank = processes()[0]
        self.step = 0
        self.history: History = []
        self.names: list[str] = []  # of the terms
        self.settled: list[list[float]] = []  # terms of each step since the last point of the history
        self.recent: list[Tensor] = []  # those of the steps after these, still on the device
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
        """Before the first step of all, let the first process's method look at batches, which the others do not."""
        failed = None
        if self.rank == 0 and self.saved is None and self.plan.recipe.steps:
            feed = iter(batches(0))
            torch.manual_seed(seed_of(self.plan.seed, -1, 0, 0))
            try:
                self.method.prepare(moved(batch, self.device) for batch in feed)
            except Exception as error:  # the others must not wait for what will not come
                failed = error
            finally:
                closed(feed)
        if anywhere([failed is not None])[0]:
            raise failed or SystemExit(2)  # the first process tells

    def run(self, batches: Callable[[int], Iterable[AudioBatch]]) -> None:
        """Train to the end of the plan."""
        self.started = self.shown = saved = time.perf_counter()
        if mean(torch.tensor([self.step])).item() != self.step:
            raise UpstreamError("the processes resume from different states; put the output where all of them see it")
        steps, feed = self.plan.recipe.steps, iter(batches(self.step))
        try:
            with interruption() as signals:
                while self.step < steps:
                    self._learn(feed)
                    if self.step % self.plan.every == 0 or self.step == steps:
                        self._tell()
                    keep, show = self._due(saved, self.plan.save_every), self._due(self.shown, self.plan.report_every)
                    stop, keep, show = anywhere([signals.noted, keep, show])
                    if show and self.recent:
                        self._settle()
                        self._show(self._means())
                    if stop or keep:
                        self._save()
                        saved = time.perf_counter()
                    if stop:
                        raise KeyboardInterrupt
        finally:
            closed(feed)
        self._refuse(not_finite(self.method.state_dict()), self.step)

    def _due(self, last: float, every: float) -> bool:
        """Whether the first process should do again what it did last so many seconds ago."""
        ends = self.step == self.plan.recipe.steps
        return self.rank == 0 and not ends and time.perf_counter() - last >= every

    def _learn(self, feed: Iterator[AudioBatch]) -> None:
        """One step: gradients of all parts, averaged, and what follows from them."""
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
        share(self.method.buffers())
        self.recent.append(torch.cat([torch.stack(terms).mean(0), norm[None]]))

    def _part(self, batch: AudioBatch, part: int, done: float) -> Tensor:
        """Add a micro-batch's share to the gradients; its terms."""
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
        return moved(batch, self.device)

    def _tell(self) -> None:
        self._settle()
        terms = self._means()
        self.history.append(CurvePoint(self.step, terms))
        self.settled = []
        self._show(terms)

    def _means(self) -> dict[str, float]:
        """Of the terms since the last point."""
        columns = zip(*self.settled, strict=True)
        return {name: fmean(column) for name, column in zip(self.names, columns, strict=True)}

    def _show(self, terms: dict[str, float]) -> None:
        self.shown = time.perf_counter()
        if self.rank == 0:
            recipe, seconds = self.plan.recipe, self.shown - self.started
            lr = learning_rate(recipe, self.step - 1)
            self.report(TrainingProgress(self.step, recipe.steps, terms, lr, self.waited / seconds, seconds))

    def _settle(self) -> None:
        """Fetch the terms of recent steps from all processes; refuse those that are not finite."""
        if not self.recent:
            return
        rows = mean(torch.stack(self.recent)).tolist()
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
            kept = "no state was saved" if self.saved is None else f"the last state saved is of step {self.saved}"
            told = f"{listed(broken)} {'is' if len(broken) == 1 else 'are'} not finite at step {step}"
            raise UpstreamError(f"{told}; lower --lr or train with --precision fp32; {kept}")


def seed_of(seed: int, step: int, part: int, rank: int) -> int:
    """Seed of all that is random in a micro-batch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {part} {rank}".encode()).digest()[:8], "big")


def moved(batch: AudioBatch, device: torch.device) -> AudioBatch:
    """The batch in memory of the device; on the CPU a copy, as sums may depend on how their terms are aligned."""
    move = partial(_pinned, device=device) if device.type == "cuda" else partial(Tensor.to, device=device, copy=True)
    labels = {kind: move(each) for kind, each in batch.labels.items()}
    return AudioBatch(move(batch.waveforms), move(batch.lengths), labels)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


def closed(feed: Iterator[AudioBatch]) -> None:
    """Let whoever feeds the loop put things away."""
    if isinstance(feed, Generator):
        feed.close()
