from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.upstreams.training import PLAN, STEPS, Spoilt, Toy, batches, close, fitted, same, toy
from upstreams.base import UpstreamError
from upstreams.pretraining.loop import Schedule, TrainingProgress, TrainingState, fit, seed_of
from upstreams.pretraining.metadata_triplet import WithMetadata
from upstreams.pretraining.methods import METHODS, AudioBatch, Method, Step, create_method
from upstreams.pretraining.optimization import learning_rate
from upstreams.pretraining.processes import Interruption


@pytest.fixture(scope="module")
def unbroken() -> tuple[dict[str, Tensor], list, list[TrainingState]]:
    """Weights and history of a whole training, and its state after every step but the last."""
    states: list[TrainingState] = []
    return *fitted(replace(PLAN, save_every=0.0), 0.3, save=states.append), states


def test_saving_changes_nothing(unbroken):
    weights, history, states = unbroken
    untouched, same_history = fitted(dropout=0.3)
    assert [state.facts["step"] for state in states] == list(range(1, STEPS))
    assert same(weights, untouched)
    assert history == same_history


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_training_resumed_after_any_step_goes_on_bit_for_bit(unbroken, step):
    weights, history, states = unbroken
    again: list[TrainingState] = []
    plan = replace(PLAN, save_every=0.0)
    resumed, resumed_history = fitted(plan, 0.3, state=states[step - 1], save=again.append)
    assert same(resumed, weights)
    assert resumed_history == history
    assert [state.facts for state in again] == [state.facts for state in states[step:]]
    assert all(same(one.tensors, two.tensors) for one, two in zip(again, states[step:], strict=True))


def test_a_state_holds_weights_buffers_and_moments_apart_from_the_training(unbroken):
    state = unbroken[2][4]
    assert state.tensors["method.calls"] == 2 * 5
    assert state.tensors["optimizer.layers.0.weight.step"] == 5
    moments = {name.rpartition(".")[2] for name in state.tensors if name.startswith("optimizer.")}
    assert moments == {"step", "exp_avg", "exp_avg_sq"}
    assert not any("slow" in name or "unused" in name for name in state.tensors if name.startswith("optimizer."))
    assert len({tensor.data_ptr() for tensor in state.tensors.values()}) == len(state.tensors)


def test_the_seed_decides_what_is_drawn():
    one, other = fitted(dropout=0.3), fitted(replace(PLAN, seed=6), 0.3)
    assert not same(one[0], other[0])
    assert same(fitted()[0], fitted(replace(PLAN, seed=6))[0]), "without dropout nothing that matters is drawn"


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 4), min_size=2, max_size=2, unique=True))
def test_every_part_of_every_step_in_every_process_draws_anew(places):
    assert seed_of(*places[0]) != seed_of(*places[1])


def test_every_micro_batch_draws_anew():
    trained = toy()
    fit(trained, batches, PLAN)
    assert len(set(trained.drawn)) == 2 * STEPS


def test_the_generator_of_the_caller_is_left_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    trained = toy()
    torch.manual_seed(3)
    fit(trained, batches, PLAN)
    assert torch.equal(torch.rand(4), expected)


def noises(first: int) -> Iterator[AudioBatch]:
    """Micro-batches of three clips of 0.5 s, two of which have the same speaker."""
    for step in range(first, 3):
        sound = 0.1 * torch.randn(6, 8000, generator=torch.Generator().manual_seed(step))
        labels = {"speaker": torch.tensor([1, 0, 1])}
        yield from (AudioBatch(rows, torch.tensor([8000, 6500, 7000]), labels) for rows in sound.chunk(2))


def built(name: str, labels: bool, seed: int) -> Method:
    """A small method, with or without metadata labels."""
    plain = create_method(name, "mini", seed)
    return WithMetadata(plain, {"speaker": 1.0}) if labels else plain


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_bit_for_bit(name, labels):
    whole, rest = (built(name, labels, seed) for seed in (0, 1))
    plan = Schedule(replace(whole.recipe, steps=3, warmup=1), accumulate=2, every=2, save_every=0.0)
    states: list[TrainingState] = []
    history = fit(whole, noises, plan, save=states.append)
    assert fit(rest, noises, plan, state=states[0]) == history
    assert same(whole.state_dict(), rest.state_dict())
    assert not same(whole.exported(), create_method(name, "mini", 0).exported())
    assert ("triplet" in history[-1].terms) == labels


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_each_view_of_each_clip_a_vector_that_the_encoder_learns_from(name):
    trained, batch = create_method(name, "mini", 0).eval(), next(noises(0))
    other = batch.waveforms.clone()
    other[1] = 0.05 * torch.randn(8000, generator=torch.Generator().manual_seed(9))
    found = []
    for waveforms in (batch.waveforms, other):
        torch.manual_seed(3)
        found.append(trained(batch._replace(waveforms=waveforms), 0.5).vectors)
    changes = (found[0] - found[1]).norm(dim=1).unflatten(0, (-1, 3))  # of each view and clip
    assert torch.all(changes[:, 1] > 3 * changes[:, [0, 2]].amax(1)), "though ATST mixes a little of others into clips"
    found[0].square().sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in trained.parameters())


def test_a_training_without_steps_leaves_the_weights_it_starts_from():
    weights, history = fitted(replace(PLAN, recipe=replace(PLAN.recipe, steps=0)))
    assert same(weights, toy().state_dict())
    assert history == []


def test_parts_add_up_to_the_whole_batch():
    whole, parts = fitted(replace(PLAN, accumulate=1)), fitted(replace(PLAN, accumulate=4))
    assert [weights["calls"] for weights, _ in (whole, parts)] == [STEPS, 4 * STEPS]
    assert close(whole[0], parts[0])
    assert [point.terms["loss"] for point in whole[1]] == pytest.approx([point.terms["loss"] for point in parts[1]])


def test_a_method_is_told_how_much_is_done():
    trained = toy()
    fit(trained, batches, PLAN)
    assert trained.seen == [step / STEPS for step in range(STEPS) for _ in range(2)]
    assert trained.stepped_at == [(step + 1) / STEPS for step in range(STEPS)]


def test_reports_are_means_since_the_last_one():
    reports: list[TrainingProgress] = []
    _, history = fitted(report=reports.append)
    assert [progress.step for progress in reports] == [4, 8, 12, 13]
    done = [1.5 / STEPS, 5.5 / STEPS, 9.5 / STEPS, 12 / STEPS]
    assert [progress.terms["done"] for progress in reports] == pytest.approx(done)
    assert [(progress.step, progress.terms) for progress in reports] == history
    assert [progress.lr for progress in reports] == [
        learning_rate(PLAN.recipe, progress.step - 1) for progress in reports
    ]
    assert reports[-1].terms["gradient"] > 0
    assert reports[-1].steps == STEPS


def test_reports_between_the_points_of_the_history_leave_it_alone():
    reports: list[TrainingProgress] = []
    _, history = fitted(replace(PLAN, report_every=0.0), report=reports.append)
    assert history == fitted()[1]
    assert [progress.step for progress in reports if progress.step % PLAN.every] == [1, 2, 3, 5, 6, 7, 9, 10, 11, 13]
    done = {progress.step: progress.terms["done"] for progress in reports}
    assert [done[step] * STEPS for step in (5, 6, 7, 8)] == pytest.approx([4.0, 4.5, 5.0, 5.5])


def by_hand(plan: Schedule) -> dict[str, Tensor]:
    """Weights after a training that is written as one would for this method and plan alone."""
    trained, recipe = toy(0.3).train(), plan.recipe
    weights = [(name, each) for name, each in trained.named_parameters() if not name.startswith("slow")]
    groups = [[each for name, each in weights if name.endswith(end)] for end in ("weight", "unused", "bias")]
    options = {"lr": recipe.lr, "betas": recipe.betas, "fused": True}
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], **options)
    feed = batches(0, plan.accumulate)
    for step in range(STEPS):
        wave = (1 + math.cos(math.pi * (step - recipe.warmup) / (STEPS - recipe.warmup))) / 2
        decay = (1 + math.cos(math.pi * step / STEPS)) / 2
        for group, share in zip(optimizer.param_groups, (1, 1, 0), strict=True):
            group["lr"] = recipe.final_lr + (recipe.lr - recipe.final_lr) * wave
            if step < recipe.warmup:
                group["lr"] = recipe.lr * (step + 1) / recipe.warmup
            group["weight_decay"] = share * (0.3 + (0.1 - 0.3) * decay)
        optimizer.zero_grad()
        for part in range(plan.accumulate):
            torch.manual_seed(seed_of(plan.seed, step, part, 0))
            (trained(next(feed), step / STEPS).terms["loss"] / plan.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            trained.stepped((step + 1) / STEPS)
    return trained.state_dict()


def test_the_loop_does_what_one_written_by_hand_does():
    assert same(fitted(dropout=0.3)[0], by_hand(PLAN))


def test_time_spent_waiting_for_batches_is_told():
    def slow(first: int) -> Iterator[AudioBatch]:
        for batch in batches(first):
            time.sleep(0.005)
            yield batch

    reports: list[TrainingProgress] = []
    fit(toy(), slow, PLAN, report=reports.append)
    assert 2 * STEPS * 0.005 <= reports[-1].waiting * reports[-1].seconds <= reports[-1].seconds


def test_half_precision_is_of_the_arithmetic_and_not_of_the_weights():
    half, full = toy(), toy()
    fit(half, batches, replace(PLAN, recipe=replace(PLAN.recipe, precision="bf16")))
    fit(full, batches, PLAN)
    assert half.dtypes == {torch.bfloat16}
    assert full.dtypes == {torch.float32}
    assert {weight.dtype for weight in half.parameters()} == {torch.float32}


class Overflowing(Toy):
    """A buffer becomes infinite after the seventh step, while all terms stay finite."""

    def stepped(self, done: float) -> None:
        super().stepped(done)
        if round(done * STEPS) == 7:
            self.middle.fill_(math.inf)


class Steep(Toy):
    """Its loss is finite, but its gradient is not."""

    def forward(self, batch: AudioBatch, done: float) -> Step:
        guessed = self.layers(batch.waveforms)
        return Step({"loss": (0.0 * guessed).sum().sqrt()}, guessed)


@pytest.mark.parametrize(
    ("kind", "save_every", "told"),
    [
        (Spoilt, 300.0, "^gradient, loss are not finite at step 7; .*; no state was saved$"),
        (Spoilt, 0.0, "^gradient, loss are not finite at step 7; .*; the last state saved is of step 6$"),
        (Overflowing, 0.0, "^method.middle is not finite at step 7; .*; the last state saved is of step 6$"),
        (Overflowing, 300.0, "^middle is not finite at step 13; .*; no state was saved$"),
        (Steep, 0.0, "^gradient is not finite at step 1; .*; no state was saved$"),
    ],
)
def test_what_is_not_finite_is_told_and_never_saved(kind, save_every, told):
    states: list[TrainingState] = []
    with pytest.raises(UpstreamError, match=told):
        fit(toy(kind=kind), batches, replace(PLAN, save_every=save_every), save=states.append)
    assert all(tensor.isfinite().all() for state in states for tensor in state.tensors.values())


class Greedy(Toy):
    """A method that needs more memory than a GPU has."""

    def forward(self, batch: AudioBatch, done: float) -> Step:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_too_little_memory_of_a_gpu_is_told_with_what_to_do():
    with pytest.raises(UpstreamError, match=r"for 4 stretches of .* more parts, such as --accumulate 4$"):
        fit(toy(kind=Greedy), batches, PLAN)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_finish_and_saves(unbroken, number):
    states: list[TrainingState] = []
    closed: list[bool] = []

    def interrupted(first: int) -> Iterator[AudioBatch]:
        try:
            for count, batch in enumerate(batches(first)):
                if count == 2 * 5:
                    os.kill(os.getpid(), number)
                yield batch
        finally:
            closed.append(True)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(toy(0.3), interrupted, PLAN, save=states.append)
    assert [state.facts["step"] for state in states] == [6]
    assert same(states[0].tensors, unbroken[2][5].tensors)
    assert closed == [True], f"closed even while {stopped} keeps the loop in memory"
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait_but_an_echo_of_the_first_does_nothing():
    noted = Interruption()
    noted(signal.SIGINT, None)
    noted(signal.SIGINT, None)
    assert noted.since is not None
    noted.since -= 5.0
    with pytest.raises(KeyboardInterrupt):
        noted(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipe": replace(PLAN.recipe, precision="fp8")}, "no precision 'fp8'; use bf16 or fp32"),
        ({"recipe": replace(PLAN.recipe, optimizer="sgd")}, "no optimizer 'sgd'; use adam or adamw"),
        ({"recipe": replace(PLAN.recipe, steps=20)}, "the batches end at step 13 of 20"),
        ({"accumulate": 0}, "1 part or more"),
        ({"device": "gpu"}, "no device 'gpu'; use cpu, cuda or cuda:NUMBER"),
        ({"device": "cuda:99"}, "no GPU 99 here"),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(change, told):
    with pytest.raises(UpstreamError, match=told):
        fit(toy(), batches, replace(PLAN, **change))


@pytest.mark.parametrize("name", ["method.layers.0.weight", "optimizer.layers.0.weight.exp_avg"])
def test_a_state_of_another_method_is_refused(unbroken, name):
    state = unbroken[2][0]
    for wrong in ({name: torch.zeros(1, 9)}, {name.replace("layers", "other"): torch.zeros(1)}):
        with pytest.raises(UpstreamError, match="of another method"):
            fit(toy(), batches, PLAN, state=TrainingState({**state.tensors, **wrong}, state.facts))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_resumes_where_it_stopped(precision):
    states: list[TrainingState] = []
    plan = replace(PLAN, device="cuda", save_every=0.0, recipe=replace(PLAN.recipe, precision=precision))
    weights, history = fitted(plan, 0.3, save=states.append)
    resumed, same_history = fitted(plan, 0.3, state=states[5])
    assert same(weights, resumed)
    assert history == same_history
    assert {tensor.device.type for state in states for tensor in state.tensors.values()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_resumes_on_a_gpu(name, precision):
    whole, rest = (built(name, True, seed) for seed in (0, 1))
    recipe = replace(whole.recipe, steps=3, warmup=1, precision=precision)
    plan = Schedule(recipe, accumulate=2, every=1, save_every=0.0, device="cuda")
    states: list[TrainingState] = []
    history = fit(whole, noises, plan, save=states.append)
    for one, two in zip(history, fit(rest, noises, plan, state=states[0]), strict=True):
        assert one.terms["loss"] == pytest.approx(two.terms["loss"], rel=0.02)  # kernels may add in another order


@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_its_tensors_where_its_batch_is(name, monkeypatch):
    monkeypatch.setattr(
        "upstreams.seeds.augmented_views.random_fractions",
        lambda like: torch.rand(len(like), dtype=torch.float64, device="cpu"),
    )
    trained, batch = built(name, True, 0), next(noises(0))
    # Tensors that are created without a device stay there rather than follow the batch.
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        terms, vectors = trained(batch, 0.5)
    assert {tensor.device.type for tensor in (*terms.values(), vectors)} == {"cpu"}
