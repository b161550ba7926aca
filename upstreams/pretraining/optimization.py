"""Optimiser of pre-training: rates that follow from the step alone, and moments by the names of their parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.pretraining.methods import Recipe

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PREFIX = "optimizer."  # of the moments' names


def half_cosine(start: float, end: float, share: float) -> float:
    """From `start` to `end` as share goes from 0 to 1, without a slope at either (Loshchilov & Hutter, 2017)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def learning_rate(recipe: Recipe, step: int) -> float:
    """Rate of a step, from 0: up in a line, `recipe.lr` at the last step of the warm-up, then half a cosine down."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    return half_cosine(recipe.lr, recipe.final_lr, (step - recipe.warmup) / (recipe.steps - recipe.warmup))


def weight_decay(recipe: Recipe, step: int) -> float:
    """Weight decay of matrices at a step, from 0."""
    final = recipe.weight_decay if recipe.final_weight_decay is None else recipe.final_weight_decay
    return half_cosine(recipe.weight_decay, final, step / recipe.steps)


def trained(method: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


def optimizer_of(method: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; `set_rates` sets its rates. Raises UpstreamError where there is no such."""
    if recipe.optimizer not in OPTIMIZERS:
        raise UpstreamError(f"no optimizer '{recipe.optimizer}'; use {' or '.join(OPTIMIZERS)}")
    parameters = trained(method).values()
    matrices = {"params": [each for each in parameters if each.ndim >= 2], "decays": True}
    vectors = {"params": [each for each in parameters if each.ndim < 2], "decays": False}
    groups = [group for group in (matrices, vectors) if group["params"]]
    return OPTIMIZERS[recipe.optimizer](groups, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
        group["weight_decay"] = weight_decay(recipe, step) if group["decays"] else 0.0


def moments(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, Tensor]:
    """What the optimiser remembers, as optimizer.PARAMETER.exp_avg and so on."""
    return {
        f"{PREFIX}{name}.{key}": tensor
        for name, parameter in trained(method).items()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def set_moments(optimizer: torch.optim.Optimizer, method: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a new optimiser what `moments` told of an earlier one; raises UpstreamError for other parameters."""
    parameters = trained(method)
    for name, tensor in tensors.items():
        of, _, key = name.removeprefix(PREFIX).rpartition(".")
        if of not in parameters or tensor.shape not in (parameters[of].shape, torch.Size([])):
            raise UpstreamError(f"the training state holds '{name}', which is of another method or size; start anew")
        parameter = parameters[of]
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
