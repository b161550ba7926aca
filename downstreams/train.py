"""Training and prediction of heads: one read of each batch serves all settings; validation selects the epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from downstreams.base import Batch, Head
from downstreams.errors import HeadError
from downstreams.feed import Dataset, EncoderModule, Feed, collect_by_id, in_eval_mode, targets_on
from downstreams.sweep import OptimizerState, ParallelHeads, Separate, Setting, Stacked, TrainingOptions, fixed_seed

__all__ = ["Dataset", "Epoch", "Fitted", "Setting", "TrainingOptions", "fit_heads", "predict"]

Report = Callable[[int, int], None]


class Epoch(NamedTuple):
    """Mean training loss of an epoch, and the validation score by which the best epoch is selected."""

    loss: float
    valid: float


@dataclass
class Fitted:
    """The result of training one head.

    head: the head in eval mode, with the weights of its best epoch; epoch: the best epoch, from 1, or 0 if there was
    none; valid: the validation scores of that epoch; curve: all epochs; seconds: its share of the sweep's wall time;
    diverged: training stopped because a loss or output was not finite; unusable: the number of training clips that the
    loss ignored; encoder: the tuned encoder, None if the encoder was frozen.
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


def fit_heads(
    build: Callable[[], Head],
    settings: Sequence[Setting],
    train: Dataset,
    valid: Dataset,
    references: Any,
    metric: str,
    options: TrainingOptions,
    encoder: EncoderModule | None = None,
    tune: bool = False,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> list[Fitted]:
    """Train one head per setting; a head's result does not depend on the other settings.

    build: makes an untrained head; references: the references of `valid`, as for the head's `score`; metric: selects
    the best epoch, the first of equally good ones; encoder: turns waveforms into features, frozen and once per batch
    for all heads; tune: fine-tune instead a copy of the encoder with each head; report: called with the number of
    clips done and of all clips.
    Raises HeadError on metrics and targets that do not fit the head, and on features that are not finite.
    """
    if not settings:
        raise HeadError("nothing to train: the sweep has no settings")
    heads = [_build_head(build, setting).to(device) for setting in settings]
    if metric not in heads[0].metrics:
        raise HeadError(f"no metric {metric!r} for this head; it has {', '.join(heads[0].metrics)}")
    feed = Feed(heads[0].view, torch.device(device), in_eval_mode(encoder))
    if tune and not (heads[0].trained and isinstance(encoder, nn.Module)):
        raise HeadError("tuning needs a head that is trained and an encoder that is a module")
    if not heads[0].trained:
        return _select(heads, settings, train, valid, references, feed)
    if not len(train):
        raise HeadError("nothing to train on: there are no training clips")
    training = HeadTraining(train, valid, references, metric, options, feed, report or _no_report)
    if not tune:
        sweep = Stacked if heads[0].batched else Separate
        return training.run(sweep(heads, settings, options), settings)
    pairs = enumerate(zip(heads, settings, strict=True))
    return [_tune(training, head, setting, number, len(settings)) for number, (head, setting) in pairs]


def predict(
    fitted: Sequence[Fitted], data: Dataset, encoder: EncoderModule | None = None, device: str | torch.device = "cpu"
) -> list[dict[str, Any]]:
    """Return the predictions of each head by utterance id.

    It takes one pass over the clips, or one pass per head where encoders are tuned. Raises HeadError where the batches
    hold an id twice or miss one of `data.ids`, and where outputs are not finite.
    """
    if len(fitted) > 1 and any(result.encoder is not None for result in fitted):
        return [predict([result], data, encoder, device)[0] for result in fitted]
    heads = [result.head.to(device) for result in fitted]
    tuned = fitted[0].encoder
    feed = Feed(heads[0].view, torch.device(device), in_eval_mode(tuned.to(device) if tuned is not None else encoder))
    sweep: ParallelHeads = Stacked(heads) if heads[0].batched else Separate(heads)
    predictions = _predict(sweep, data, feed)
    if sweep.diverged:
        raise HeadError(f"{len(sweep.diverged)} of {len(heads)} heads gave outputs that are not finite")
    return [predictions[number] for number in range(len(heads))]


@dataclass(frozen=True)
class HeadTraining:
    """The data and options that the heads of a sweep share in training."""

    train: Dataset
    valid: Dataset
    references: Any
    metric: str
    options: TrainingOptions
    feed: Feed
    report: Report

    def run(self, sweep: ParallelHeads, settings: Sequence[Setting], tuned: nn.Module | None = None) -> list[Fitted]:
        """Train until the last epoch, or until no head is active, and restore the best epoch's weights of each."""
        fitted = [Fitted(head, setting, encoder=tuned) for head, setting in zip(sweep.heads, settings, strict=True)]
        best = [self._state(sweep, number, tuned) for number in sweep.active]
        for epoch in range(1, self.options.epochs + 1):
            active, start = list(sweep.active), time.perf_counter()
            losses = self._train_epoch(sweep, epoch, fitted, tuned)
            for number, scores in self._validate(sweep, tuned).items():
                if self._add_epoch(fitted[number], epoch, losses[number], scores):
                    best[number] = self._state(sweep, number, tuned)
            sweep.keep([number for number in sweep.active if not self._patience_is_over(fitted[number], epoch)])
            seconds = (time.perf_counter() - start) / len(active)
            for number in active:
                fitted[number].seconds += seconds
            if not sweep.active:
                break
        self.report(self.options.epochs * len(self.train), self.options.epochs * len(self.train))
        for number, result in enumerate(fitted):
            self._finish(result, best[number], number in sweep.diverged)
        return fitted

    def _train_epoch(
        self, sweep: ParallelHeads, epoch: int, fitted: list[Fitted], tuned: nn.Module | None
    ) -> dict[int, float]:
        """Make one pass over the training clips, and return the mean loss of each head that is active after it."""
        sums, clips = dict.fromkeys(sweep.active, 0.0), 0
        for position, batch in enumerate(self.train.batches(epoch)):
            inputs, lengths = self._inputs(batch, epoch, position, fitted[0].setting, tuned)
            encoded = targets_on(sweep.heads[0].encode(batch.targets), inputs.device)
            for number, loss in sweep.step(inputs, lengths, encoded).items():
                sums[number] += loss * len(batch.ids)
            clips += len(batch.ids)
            unusable = sweep.heads[0].unusable(encoded, lengths) if epoch == 1 else 0
            for result in fitted:
                result.unusable += unusable
            self.report((epoch - 1) * len(self.train) + clips, self.options.epochs * len(self.train))
            if not sweep.active:
                break
        if epoch == 1 and fitted[0].unusable == len(self.train):
            raise HeadError("every training clip has fewer steps than its target needs; use a smaller stride or hop")
        return {number: sums[number] / clips for number in sweep.active}

    def _inputs(
        self, batch: Batch, epoch: int, position: int, setting: Setting, tuned: nn.Module | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the head's inputs for the batch at `position` of an epoch, with gradients if the encoder is tuned."""
        if tuned is None:
            with torch.no_grad():
                return self.feed(batch)
        # The encoder's dropout has negative step numbers, so that it differs from the head's, whose steps are positive.
        with fixed_seed(setting.seed, -(epoch * 1_000_000 + position)):
            return self.feed(batch)

    def _validate(self, sweep: ParallelHeads, tuned: nn.Module | None) -> dict[int, dict[str, float]]:
        if tuned is not None:
            tuned.eval()
        predictions = _predict(sweep, self.valid, self.feed) if sweep.active else {}
        if tuned is not None:
            tuned.train()
        return {number: sweep.heads[0].score(predictions[number], self.references)[0] for number in sweep.active}

    def _add_epoch(self, fitted: Fitted, epoch: int, loss: float, scores: dict[str, float]) -> bool:
        """Add an epoch to the curve, and return whether it is the best so far."""
        score, best = scores[self.metric], fitted.valid.get(self.metric, math.nan)
        fitted.curve.append(Epoch(loss, score))
        better = score > best if fitted.head.metrics[self.metric] else score < best
        if better or (math.isnan(best) and not math.isnan(score)):
            fitted.epoch, fitted.valid = epoch, scores
            return True
        return False

    def _patience_is_over(self, fitted: Fitted, epoch: int) -> bool:
        """Return whether to stop a head. A score that never changed does not stop it, as with CTC in early epochs."""
        if self.options.patience is None or epoch - fitted.epoch < self.options.patience:
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


def _tune(training: HeadTraining, head: Head, setting: Setting, number: int, settings: int) -> Fitted:
    """Train setting `number` of `settings` with its own copy of the encoder, one at a time to save memory."""
    encoder = copy.deepcopy(training.feed.encoder)
    assert isinstance(encoder, nn.Module)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise HeadError("the encoder has no parameter that may be tuned")

    def report(done: int, total: int) -> None:
        training.report(number * total + done, settings * total)

    encoder.to(training.feed.device).train()
    tuning = replace(training, feed=training.feed._replace(encoder=encoder), report=report)
    return tuning.run(Separate([head], [setting], training.options, encoder), [setting], encoder)[0]


def _select(
    heads: Sequence[Head], settings: Sequence[Setting], train: Dataset, valid: Dataset, references: Any, feed: Feed
) -> list[Fitted]:
    """Fit one untrained head and copy its state to the others, which is valid since nothing in it is random.

    Heads whose setting names a layer use that layer.
    """
    start = time.perf_counter()
    first = next((number for number, setting in enumerate(settings) if setting.layer is None), 0)
    with torch.no_grad():
        summaries = collect_by_id(valid, lambda batch: list(feed(batch)[0]))
        heads[first].eval().select((feed(batch)[0] for batch in train.batches(None)), summaries, references)
        state = heads[first].state_dict()
        pairs = zip(heads, settings, strict=True)
        scores = [_scores_with_state(state, head, setting, summaries, references) for head, setting in pairs]
    seconds = (time.perf_counter() - start) / len(settings)
    results = zip(heads, settings, scores, strict=True)
    return [Fitted(head, setting, valid=valid_scores, seconds=seconds) for head, setting, valid_scores in results]


def _scores_with_state(
    state: OptimizerState, head: Head, setting: Setting, summaries: Mapping[str, Tensor], references: Any
) -> dict[str, float]:
    """Load the state of the fitted head into another head, and return its validation scores."""
    head.eval().load_state_dict(state)
    if setting.layer is not None:
        head.use(setting.layer)
    predictions = {key: head.decode(head(summary[None]))[0] for key, summary in summaries.items()}
    return head.score(predictions, references)[0]


def _predict(sweep: ParallelHeads, data: Dataset, feed: Feed) -> dict[int, dict[str, Any]]:
    """Return the predictions of each active head by id. A head with an output that is not finite becomes diverged."""

    def decode(batch: Batch) -> list[dict[int, Any]]:
        inputs, lengths = feed(batch)
        outputs = {number: out.cpu() for number, out in sweep.outputs(inputs, lengths).items()}
        sweep.diverged |= {number for number, out in outputs.items() if not torch.isfinite(out).all()}
        sweep.keep([number for number in sweep.active if number not in sweep.diverged])
        lengths_on_cpu = None if lengths is None else lengths.cpu()
        decoded = {number: sweep.heads[number].decode(outputs[number], lengths_on_cpu) for number in sweep.active}
        return [{number: values[clip] for number, values in decoded.items()} for clip in range(len(batch.ids))]

    with torch.no_grad():
        clips = collect_by_id(data, decode)
    return {number: {key: predictions[number] for key, predictions in clips.items()} for number in sweep.active}


def _build_head(build: Callable[[], Head], setting: Setting) -> Head:
    with fixed_seed(setting.seed):
        head = build()
    if setting.layer is not None:
        head.use(setting.layer)
    return head


def _no_report(done: int, total: int) -> None:
    pass
