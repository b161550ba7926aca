"""The preparation of a method before its first step, and the labels that reach it."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.upstreams.training import PLAN, STEPS, Toy, batches, fitted, same, toy
from upstreams.pretraining.loop import TrainingState, fit
from upstreams.pretraining.metadata_triplet import WithMetadata
from upstreams.pretraining.methods import AudioBatch, Method, Step
from upstreams.pretraining.processes import process_group, processes

OFTEN = replace(PLAN, save_every=0.0)


class Prepared(Toy):
    """A method that subtracts a noisy mean of the first three batches from its clips."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.register_buffer("found", torch.zeros(6))
        self.looked_at: list[Tensor] = []
        self.steps_before: list[int] = []
        self.used: list[Tensor] = []

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        self.looked_at = [batch.waveforms for batch in islice(batches, 3)]
        self.steps_before.append(len(self.seen))
        self.found.copy_(torch.cat(self.looked_at).mean(0) + torch.rand(6))

    def forward(self, batch: AudioBatch, done: float) -> Step:
        self.used.append(self.found.clone())
        return super().forward(batch._replace(waveforms=batch.waveforms - self.found), done)


def prepared(kind: type[Toy] = Prepared) -> Toy:
    return toy(0.3, kind)


def ours(first: int) -> Iterator[AudioBatch]:
    """The micro-batches of this process."""
    return batches(first, PLAN.accumulate, *processes())


def test_a_method_looks_once_at_the_batches_that_it_is_trained_with():
    trained = prepared()
    fit(trained, batches, PLAN)
    assert trained.steps_before == [0]
    expected = [batch.waveforms for batch in islice(batches(0), 3)]
    assert all(torch.equal(one, other) for one, other in zip(trained.looked_at, expected, strict=True))
    assert trained.seen[0] == 0.0
    assert len(trained.seen) == 2 * STEPS


def test_what_it_looks_at_is_put_away_before_the_training():
    events: list[str] = []

    def told(first: int) -> Iterator[AudioBatch]:
        events.append("opened")
        try:
            yield from batches(first)
        finally:
            events.append("closed")

    fit(prepared(), told, PLAN)
    assert events == ["opened", "closed"] * 2


class Unprepared(Prepared):
    """A method that was already trained, and must not be prepared."""

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        raise AssertionError("prepared again")


@pytest.mark.parametrize("step", [1, 6, STEPS - 1])
def test_a_resumed_training_finds_what_it_found_in_its_state(step):
    states: list[TrainingState] = []
    whole, rest = prepared(), prepared(Unprepared)
    history = fit(whole, batches, OFTEN, save=states.append)
    assert fit(rest, batches, PLAN, state=states[step - 1]) == history
    assert same(whole.state_dict(), rest.state_dict())
    assert torch.equal(states[step - 1].tensors["method.found"], whole.found)


def test_a_training_without_steps_looks_at_nothing():
    start = prepared(Unprepared).state_dict()
    trained = prepared(Unprepared)
    fit(trained, lambda first: iter(()), replace(PLAN, recipe=replace(PLAN.recipe, steps=0)))
    assert same(trained.state_dict(), start)


def test_what_is_drawn_meanwhile_follows_the_seed_alone():
    found = []
    for seed, chance in ((5, 1), (5, 2), (6, 1)):
        trained = prepared()
        torch.manual_seed(chance)
        fit(trained, batches, replace(PLAN, seed=seed))
        found.append(trained.found)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_method_that_prepares_nothing_is_trained_as_ever():
    class Looking(Toy):
        def prepare(self, batches: Iterator[AudioBatch]) -> None:
            torch.rand(next(batches).waveforms.shape)

    looking = toy(0.3, Looking)
    history = fit(looking, batches, PLAN)
    weights, expected = fitted(dropout=0.3)
    assert history == expected
    assert same(looking.state_dict(), weights)


def own_share(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    with process_group("cpu"):
        trained = prepared()
        fit(trained, ours, PLAN)
    kept = {"weights": trained.state_dict(), "looked": len(trained.looked_at), "used": trained.used[0]}
    torch.save(kept, folder / f"{rank}.pt")


def test_what_the_first_process_finds_reaches_all_before_the_first_step(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=own_share, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["looked"], second["looked"]) == (3, 0)
    assert first["weights"]["found"].abs().sum() > 0
    assert torch.equal(first["weights"]["found"], first["used"])
    assert torch.equal(first["used"], second["used"])
    assert same(first["weights"], second["weights"])


LANGUAGES = torch.tensor([0, 0, 1, 1, 0, 2, -1, 2])


def labelled(first: int, parts: int = 2) -> Iterator[AudioBatch]:
    """The clips of each step with a language label, which is unknown for one of them."""
    languages = LANGUAGES.chunk(parts) * STEPS
    for place, batch in enumerate(batches(first, parts)):
        yield batch._replace(labels={"language": languages[place]})


def test_a_training_with_labels_resumes_bit_for_bit():
    states: list[TrainingState] = []
    whole, rest = (WithMetadata(prepared(), {"language": 1.0}) for _ in range(2))
    history = fit(whole, labelled, OFTEN, save=states.append)
    assert history[-1].terms["triplet"] > 0
    assert fit(rest, labelled, PLAN, state=states[5]) == history
    assert same(whole.state_dict(), rest.state_dict())
    assert same(whole.exported(), whole.method.exported())


class Noting(Method):
    """A method that stores the labels that it receives."""

    recipe = PLAN.recipe

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.given: list[dict[str, Tensor]] = []

    def forward(self, batch: AudioBatch, done: float) -> Step:
        self.given.append(dict(batch.labels))
        return Step({"loss": self.weight.square()}, batch.waveforms)

    def exported(self) -> dict[str, Tensor]:
        return {}


def test_labels_reach_the_method_with_their_clips_as_copies():
    trained = Noting()
    fit(trained, labelled, PLAN)
    expected = [batch.labels["language"] for batch in labelled(0)]
    assert len(expected) == len(trained.given) == 2 * STEPS
    for given, labels in zip(trained.given, expected, strict=True):
        assert given.keys() == {"language"}
        assert torch.equal(given["language"], labels)
        assert given["language"].dtype == torch.int64
        assert given["language"].data_ptr() != labels.data_ptr()


def test_without_labels_a_method_is_given_none():
    trained = Noting()
    fit(trained, batches, PLAN)
    assert trained.given == [{}] * (2 * STEPS)
