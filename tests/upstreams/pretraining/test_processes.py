"""Two processes on the CPU, started as by torchrun, compared with one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.upstreams.training import PLAN, STEPS, Spoilt, Toy, batches, close, fitted, same, toy
from upstreams.base import UpstreamError
from upstreams.pretraining.loop import TrainingState, fit
from upstreams.pretraining.methods import AudioBatch
from upstreams.pretraining.processes import (
    any_process,
    average_gradients,
    mean_over_processes,
    process_group,
    processes,
)

OFTEN = replace(PLAN, save_every=0.0)


def ours(first: int) -> Iterator[AudioBatch]:
    """The micro-batches of this process."""
    return batches(first, PLAN.accumulate, *processes())


def shares() -> dict[str, Any]:
    trained = toy()
    history = fit(trained, ours, PLAN)
    return {"weights": trained.state_dict(), "history": history, "drawn": trained.drawn}


def resumed() -> dict[str, Any]:
    """The final weights of a full training and one resumed after its fifth step, and the calls of save and report."""
    states: list[TrainingState] = []
    whole, rest = toy(0.3), toy(0.3)
    whole_history = fit(whole, ours, OFTEN, save=states.append)
    kept = [states[4] if states else None]
    torch.distributed.broadcast_object_list(kept)
    rest_history = fit(rest, ours, PLAN, state=kept[0])
    told = {"saved": len(states), "equal": same(whole.state_dict(), rest.state_dict())}
    return {**told, "same history": whole_history == rest_history, "weights": rest.state_dict()}


def apart() -> dict[str, Any]:
    """Only the first process resumes, as when each process has its own disk."""
    states: list[TrainingState] = []
    fit(toy(), ours, OFTEN, save=states.append)
    with pytest.raises(UpstreamError) as error:
        fit(toy(), ours, PLAN, state=states[4] if states else None)
    return {"told": str(error.value)}


def interrupted() -> dict[str, Any]:
    """Only the second process gets a signal."""
    states: list[TrainingState] = []

    def batches_and_signal(first: int) -> Iterator[AudioBatch]:
        for count, batch in enumerate(ours(first)):
            if count == 2 * 5 and processes()[0] == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    trained = toy()
    with pytest.raises(KeyboardInterrupt):
        fit(trained, batches_and_signal, PLAN, save=states.append)
    return {"saved": [state.facts["step"] for state in states], "steps": len(trained.stepped_at)}


def spoilt() -> dict[str, Any]:
    """The loss is infinite in the second process only."""
    with pytest.raises(UpstreamError) as error:
        fit(toy(kind=Spoilt if processes()[0] == 1 else Toy), ours, PLAN)
    return {"told": str(error.value)}


def primitives() -> dict[str, Any]:
    rank = processes()[0]
    both, second, neither = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.full((2,), 1.0 + rank)
    second.grad = torch.full((2,), 8.0) if rank == 1 else None
    average_gradients([both, second, neither])
    any_process([True])
    return {
        "gradients": [both.grad, second.grad, neither.grad],
        "anywhere": any_process([rank == 0, rank == 1, False]),
        "mean": mean_over_processes(torch.tensor([rank, 3.0])),
    }


def own_share(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    found: dict[str, Any] = {}
    with process_group("cpu"):
        for part in (shares, resumed, apart, interrupted, spoilt, primitives):
            found[part.__name__] = part()
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Callable[..., Any] = multiprocessing.get_context("spawn").Process
    started = [start(target=own_share, args=(rank, port, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_with_half_of_each_batch_learn_what_one_does_with_all_of_it(found):
    weights, history = fitted()
    for each in found:
        assert close(each["shares"]["weights"], weights)
        assert [point.step for point in each["shares"]["history"]] == [point.step for point in history]
        losses = [point.terms["loss"] for point in each["shares"]["history"]]
        assert losses == pytest.approx([point.terms["loss"] for point in history])
    assert found[0]["shares"]["history"] == found[1]["shares"]["history"]
    assert same(found[0]["shares"]["weights"], found[1]["shares"]["weights"])


def test_both_resume_bit_for_bit_from_what_the_first_saved(found):
    assert [each["resumed"]["saved"] for each in found] == [STEPS - 1, 0]
    assert all(each["resumed"]["equal"] and each["resumed"]["same history"] for each in found)
    assert same(found[0]["resumed"]["weights"], found[1]["resumed"]["weights"])


def test_processes_that_resume_from_different_states_are_stopped(found):
    assert all("resume from different states" in each["apart"]["told"] for each in found)


def test_each_draws_for_itself(found):
    drawn = found[0]["shares"]["drawn"] + found[1]["shares"]["drawn"]
    assert len(set(drawn)) == 2 * 2 * STEPS


def test_a_signal_to_one_stops_both_after_the_same_step(found):
    assert [each["interrupted"] for each in found] == [{"saved": [6], "steps": 6}, {"saved": [], "steps": 6}]


def test_what_is_not_finite_in_one_stops_both(found):
    for each in found:
        assert each["spoilt"]["told"].startswith("gradient, loss are not finite at step 7; ")


def test_gradients_are_averaged_and_those_of_nobody_stay_absent(found):
    for each in found:
        both, second, neither = each["primitives"]["gradients"]
        assert both.tolist() == [1.5, 1.5]
        assert second.tolist() == [4.0, 4.0]
        assert neither is None


def test_flags_and_means_are_of_all_processes(found):
    for each in found:
        assert each["primitives"]["anywhere"] == [True, True, False]
        assert each["primitives"]["mean"].tolist() == [0.5, 3.0]


def test_a_group_that_nobody_leads_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UpstreamError, match="start by torchrun"), process_group("cpu"):
        pass


def test_a_process_of_its_own_needs_no_group():
    assert processes() == (0, 1)
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not torch.distributed.is_initialized()
