"""The one loop that trains every head: many settings from one read of each batch, the best epoch by validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from downstreams.base import Batch, Head, HeadError
from downstreams.feed import Dataset, EncoderModule, Feed, collect, moved, settled
from downstreams.sweep import OptimizerState, ParallelHeads, Separate, Setting, Stacked, TrainingOptions, seeded

__all__ = ["Dataset", "Epoch", "Fitted", "Setting", "TrainingOptions", "fit", "predict"]

Report = Callable[[int, int], None]


class Epoch(NamedTuple):
    """Mean training loss, and the validation score that epochs are chosen by."""

    loss: float
    valid: float


@dataclass
class Fitted:
    """One trained head.

    head: with the weights of its best epoch, in eval mode; epoch: that epoch, from 1, or 0 if there was none to choose;
    valid: validation scores then; curve: all epochs; seconds: its share of the sweep's wall time; diverged: a loss or
    output was not finite, so training stopped there; unusable: training clips that the loss could not learn from;
    encoder: the tuned one, None if the encoder was frozen.
    """

    head: Head
    setting: Setting
    epoch: int = 0
    valid: dict[str, float] = field(default_factory=dict)
    curve: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    diverged: bool = False
    unusable: int = 0
    encoder: nn.Module | None = None


def fit(
    build: Callable[[], Head],
    settings: Sequence[Setting],
    train: Dataset,
    valid: Dataset,
    references: Any,
    metric: str,
    recipe: TrainingOptions,
    encoder: EncoderModule | None = None,
    tune: bool = False,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> list[Fitted]:
    """Train one head per setting; a head's result does not depend on the other settings.

    build: makes an untrained head; references: those of `valid`, as for the head's `score`; metric: chooses the epoch,
    the first of equals; encoder: runs on waveforms, frozen and once per batch for all heads, or, with tune, as a copy
    per setting that learns with its head; report: called with clips done and clips in all.
    Raises HeadError on metrics and targets that do not fit the head, and on features that are not finite.
    """
    if not settings:
        raise HeadError("nothing to train: the sweep has no settings")
    heads = [_initialised(build, setting).to(device) for setting in settings]
    if metric not in heads[0].metrics:
        raise HeadError(f"no metric {metric!r} for this head; it has {', '.join(heads[0].metrics)}")
    feed = Feed(heads[0].view, torch.device(device), settled(encoder))
    if tune and not (heads[0].trained and isinstance(encoder, nn.Module)):
        raise HeadError("tuning needs a head that is trained and an encoder that is a module")
    if not heads[0].trained:
        return _select(heads, settings, train, valid, references, feed)
    if not len(train):
        raise HeadError("nothing to train on: there are no training clips")
    loop = HeadTraining(train, valid, references, metric, recipe, feed, report or _quiet)
    if not tune:
        sweep = Stacked if heads[0].batched else Separate
        return loop.run(sweep(heads, settings, recipe), settings)
    pairs = enumerate(zip(heads, settings, strict=True))
    return [_tune(loop, head, setting, number, len(settings)) for number, (head, setting) in pairs]


def predict(
    fitted: Sequence[Fitted], data: Dataset, encoder: EncoderModule | None = None, device: str | torch.device = "cpu"
) -> list[dict[str, Any]]:
    """Predictions by utterance id of each head, from one pass over the clips (one per head with a tuned encoder).

    Raises HeadError where the batches hold an id twice or miss one of `data.ids`, and where outputs are not finite.
    """
    if len(fitted) > 1 and any(each.encoder is not None for each in fitted):
        return [predict([each], data, encoder, device)[0] for each in fitted]
    heads = [each.head.to(device) for each in fitted]
    tuned = fitted[0].encoder
    feed = Feed(heads[0].view, torch.device(device), settled(tuned.to(device) if tuned is not None else encoder))
    sweep: ParallelHeads = Stacked(heads) if heads[0].batched else Separate(heads)
    found = _predict(sweep, data, feed)
    if sweep.diverged:
        raise HeadError(f"{len(sweep.diverged)} of {len(heads)} heads gave outputs that are not finite")
    return [found[number] for number in range(len(heads))]


@dataclass(frozen=True)
class HeadTraining:
    """What the heads of a sweep have in common while they learn."""

    train: Dataset
    valid: Dataset
    references: Any
    metric: str
    recipe: TrainingOptions
    feed: Feed
    report: Report

    def run(self, sweep: ParallelHeads, settings: Sequence[Setting], tuned: nn.Module | None = None) -> list[Fitted]:
        """Train until the epochs are over or no head goes on; each gets back the weights of its best epoch."""
        fitted = [Fitted(head, setting, encoder=tuned) for head, setting in zip(sweep.heads, settings, strict=True)]
        best = [self._state(sweep, number, tuned) for number in sweep.active]
        for epoch in range(1, self.recipe.epochs + 1):
            active, start = list(sweep.active), time.perf_counter()
            losses = self._learn(sweep, epoch, fitted, tuned)
            for number, scores in self._validate(sweep, tuned).items():
                if self._note(fitted[number], epoch, losses[number], scores):
                    best[number] = self._state(sweep, number, tuned)
            sweep.keep([number for number in sweep.active if not self._done(fitted[number], epoch)])
            seconds = (time.perf_counter() - start) / len(active)
            for number in active:
                fitted[number].seconds += seconds
            if not sweep.active:
                break
        self.report(self.recipe.epochs * len(self.train), self.recipe.epochs * len(self.train))
        for number, each in enumerate(fitted):
            self._finish(each, best[number], number in sweep.diverged)
        return fitted

    def _learn(
        self, sweep: ParallelHeads, epoch: int, fitted: list[Fitted], tuned: nn.Module | None
    ) -> dict[int, float]:
        """One pass over the training clips: mean loss of each head that is still active after it."""
        sums, clips = dict.fromkeys(sweep.active, 0.0), 0
        for number, batch in enumerate(self.train.batches(epoch)):
            inputs, lengths = self._inputs(batch, (epoch, number), fitted[0].setting, tuned)
            encoded = moved(sweep.heads[0].encode(batch.targets), inputs.device)
            for which, loss in sweep.step(inputs, lengths, encoded).items():
                sums[which] += loss * len(batch.ids)
            clips += len(batch.ids)
            unusable = sweep.heads[0].unusable(encoded, lengths) if epoch == 1 else 0
            for each in fitted:
                each.unusable += unusable
            self.report((epoch - 1) * len(self.train) + clips, self.recipe.epochs * len(self.train))
            if not sweep.active:
                break
        if epoch == 1 and fitted[0].unusable == len(self.train):
            raise HeadError("every training clip has fewer steps than its target needs; use a smaller stride or hop")
        return {number: sums[number] / clips for number in sweep.active}

    def _inputs(
        self, batch: Batch, place: tuple[int, int], setting: Setting, tuned: nn.Module | None
    ) -> tuple[Tensor, Tensor | None]:
        if tuned is None:
            with torch.no_grad():
                return self.feed(batch)
        # Its dropout comes from the seed of its setting, apart from the head's, whose steps are counted upwards.
        with seeded(setting.seed, -(place[0] * 1_000_000 + place[1])):
            return self.feed(batch)

    def _validate(self, sweep: ParallelHeads, tuned: nn.Module | None) -> dict[int, dict[str, float]]:
        if tuned is not None:
            tuned.eval()
        found = _predict(sweep, self.valid, self.feed) if sweep.active else {}
        if tuned is not None:
            tuned.train()
        return {number: sweep.heads[0].score(found[number], self.references)[0] for number in sweep.active}

    def _note(self, fitted: Fitted, epoch: int, loss: float, scores: dict[str, float]) -> bool:
        """Put an epoch down; whether it is the best so far."""
        score, best = scores[self.metric], fitted.valid.get(self.metric, math.nan)
        fitted.curve.append(Epoch(loss, score))
        better = score > best if fitted.head.metrics[self.metric] else score < best
        if better or (math.isnan(best) and not math.isnan(score)):
            fitted.epoch, fitted.valid = epoch, scores
            return True
        return False

    def _done(self, fitted: Fitted, epoch: int) -> bool:
        """Whether patience is over; a score that has not moved yet, as of CTC in its first epochs, does not end it."""
        if self.recipe.patience is None or epoch - fitted.epoch < self.recipe.patience:
            return False
        perfect = 100.0 if fitted.head.metrics[self.metric] else 0.0
        scores = {past.valid for past in fitted.curve}
        return len(scores) > 1 or perfect in scores

    def _state(
        self, sweep: ParallelHeads, number: int, tuned: nn.Module | None
    ) -> tuple[OptimizerState, OptimizerState]:
        encoder = {} if tuned is None else {name: value.clone() for name, value in tuned.state_dict().items()}
        return sweep.state(number), encoder

    def _finish(self, fitted: Fitted, best: tuple[OptimizerState, OptimizerState], diverged: bool) -> None:
        fitted.head.load_state_dict(best[0])
        fitted.head.eval()
        fitted.diverged = diverged
        fitted.valid = fitted.valid or {self.metric: math.nan}
        if fitted.encoder is not None:
            fitted.encoder.load_state_dict(best[1])
            fitted.encoder.eval().cpu()


def _tune(loop: HeadTraining, head: Head, setting: Setting, number: int, of: int) -> Fitted:
    """One setting with its own copy of the encoder; one at a time, since several seldom fit into memory."""
    encoder = copy.deepcopy(loop.feed.encoder)
    assert isinstance(encoder, nn.Module)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise HeadError("the encoder has no parameter that may be tuned")

    def report(done: int, total: int) -> None:
        loop.report(number * total + done, of * total)

    encoder.to(loop.feed.device).train()
    own = replace(loop, feed=loop.feed._replace(encoder=encoder), report=report)
    return own.run(Separate([head], [setting], loop.recipe, encoder), [setting], encoder)[0]


def _select(
    heads: Sequence[Head], settings: Sequence[Setting], train: Dataset, valid: Dataset, references: Any, feed: Feed
) -> list[Fitted]:
    """Untrained heads draw nothing at random, so what one has settled holds for all but those with a layer given."""
    start = time.perf_counter()
    first = next((number for number, setting in enumerate(settings) if setting.layer is None), 0)
    with torch.no_grad():
        summaries = collect(valid, lambda batch: list(feed(batch)[0]))
        heads[first].eval().select((feed(batch)[0] for batch in train.batches(None)), summaries, references)
        settled_state = heads[first].state_dict()
        scores = [
            _settled_as(settled_state, *pair, summaries, references) for pair in zip(heads, settings, strict=True)
        ]
    seconds = (time.perf_counter() - start) / len(settings)
    pairs = zip(heads, settings, scores, strict=True)
    return [Fitted(head, setting, valid=valid, seconds=seconds) for head, setting, valid in pairs]


def _settled_as(
    state: OptimizerState, head: Head, setting: Setting, summaries: Mapping[str, Tensor], references: Any
) -> dict[str, float]:
    """Scores on validation of a head that takes over what another one settled."""
    head.eval().load_state_dict(state)
    if setting.layer is not None:
        head.use(setting.layer)
    predictions = {key: head.decode(head(summary[None]))[0] for key, summary in summaries.items()}
    return head.score(predictions, references)[0]


def _predict(sweep: ParallelHeads, data: Dataset, feed: Feed) -> dict[int, dict[str, Any]]:
    """Predictions by id of each head; one with an output that is not finite is left out and noted as diverged."""

    def decode(batch: Batch) -> list[dict[int, Any]]:
        inputs, lengths = feed(batch)
        outputs = {number: out.cpu() for number, out in sweep.outputs(inputs, lengths).items()}
        sweep.diverged |= {number for number, out in outputs.items() if not torch.isfinite(out).all()}
        sweep.keep([number for number in sweep.active if number not in sweep.diverged])
        limits = None if lengths is None else lengths.cpu()
        each = {number: sweep.heads[number].decode(outputs[number], limits) for number in sweep.active}
        return [{number: found[row] for number, found in each.items()} for row in range(len(batch.ids))]

    with torch.no_grad():
        rows = collect(data, decode)
    return {number: {key: row[number] for key, row in rows.items()} for number in sweep.active}


def _initialised(build: Callable[[], Head], setting: Setting) -> Head:
    with seeded(setting.seed):
        head = build()
    if setting.layer is not None:
        head.use(setting.layer)
    return head


def _quiet(done: int, total: int) -> None:
    pass
