from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.upstreams.training import PLAN, RECIPE, batches, toy
from upstreams.pretraining.loop import Schedule, fit
from upstreams.pretraining.methods import AudioBatch, Recipe
from upstreams.pretraining.optimization import learning_rate, weight_decay


def adam(parameters: list[Tensor], gradients: list[Tensor], step: int, memory: dict, decoupled: bool) -> list[Tensor]:
    """Kingma & Ba (2015), Loshchilov & Hutter (2019), with the gradients' common norm at most the recipe's."""
    norm = math.sqrt(sum(float(each.square().sum()) for each in gradients))
    updated = []
    for number, (weight, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        gradient = gradient * min(1.0, RECIPE.clip / norm)
        decay = weight_decay(RECIPE, step) if weight.ndim > 1 else 0.0
        lr = learning_rate(RECIPE, step)
        gradient = gradient if decoupled else gradient + decay * weight
        first, second = memory.get(number, (0.0, 0.0))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        memory[number] = first, second
        change = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        updated.append(weight * (1 - lr * decay if decoupled else 1.0) - lr * change)
    return updated


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_step_is_that_of_the_published_optimizer(name):
    trained, memory = toy(), {}
    fit(trained, lambda first: batches(first, 1), Schedule(replace(PLAN.recipe, optimizer=name)))
    expected = toy().double()
    for step, batch in enumerate(batches(0, 1)):
        loss = expected(AudioBatch(batch.waveforms.double(), batch.lengths), 0.0).terms["loss"]
        parameters = list(expected.layers.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, value in zip(
            parameters, adam(parameters, gradients, step, memory, name == "adamw"), strict=True
        ):
            parameter.data = value.detach()
    found = torch.cat([each.double().flatten() for each in trained.layers.parameters()])
    assert torch.allclose(found, torch.cat([each.flatten() for each in expected.layers.parameters()]), atol=2e-5)
    assert torch.equal(trained.unused, torch.ones(2, 2))


@given(st.integers(1, 20), st.integers(1, 30), st.floats(1e-5, 1.0))
def test_rates_are_those_of_torchs_own_schedulers(warmup, rest, lr):
    recipe = Recipe(warmup + rest, 1, 1.0, lr, warmup=warmup, weight_decay=0.04, final_weight_decay=0.4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=max(1, warmup - 1))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest, eta_min=recipe.final_lr)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])
    for step in range(recipe.steps):
        assert learning_rate(recipe, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9)
        expected = 0.4 - 0.36 * math.cos(math.pi * step / recipe.steps / 2) ** 2
        assert weight_decay(recipe, step) == pytest.approx(expected)
        optimizer.step()
        schedule.step()


def test_rates_start_at_the_top_without_warmup_and_decay_may_be_constant():
    recipe = Recipe(10, 1, 1.0, 0.5, weight_decay=0.2)
    assert learning_rate(recipe, 0) == 0.5
    assert learning_rate(recipe, 9) < 0.02
    assert {weight_decay(recipe, step) for step in range(10)} == {0.2}
