"""The optimiser of pre-training: learning rates depend on the step alone; moments are stored by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.pretraining.methods import Recipe

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PREFIX = "optimizer."  # of the names of moments


def half_cosine(start: float, end: float, share: float) -> float:
    """Return half a cosine from `start` (share 0) to `end` (share 1) (Loshchilov & Hutter, 2017)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of step `step` (from 0): linear to `recipe.lr` over the warm-up, then half a cosine."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    return half_cosine(recipe.lr, recipe.final_lr, (step - recipe.warmup) / (recipe.steps - recipe.warmup))


def weight_decay(recipe: Recipe, step: int) -> float:
    """The weight decay of matrices at step `step` (from 0)."""
    final = recipe.weight_decay if recipe.final_weight_decay is None else recipe.final_weight_decay
    return half_cosine(recipe.weight_decay, final, step / recipe.steps)


def trainable_parameters(method: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


def optimizer_of(method: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe; raises UpstreamError for an unknown name. `set_rates` then sets its rates."""
    if recipe.optimizer not in OPTIMIZERS:
        raise UpstreamError(f"no optimizer '{recipe.optimizer}'; use {' or '.join(OPTIMIZERS)}")
    parameters = trainable_parameters(method).values()
    matrices = {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "decays": True}
    vectors = {"params": [parameter for parameter in parameters if parameter.ndim < 2], "decays": False}
    groups = [group for group in (matrices, vectors) if group["params"]]
    return OPTIMIZERS[recipe.optimizer](groups, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
        group["weight_decay"] = weight_decay(recipe, step) if group["decays"] else 0.0


def moments(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, Tensor]:
    """Return the state of the optimiser as tensors named optimizer.PARAMETER.exp_avg and so on."""
    return {
        f"{PREFIX}{name}.{key}": tensor
        for name, parameter in trainable_parameters(method).items()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def set_moments(optimizer: torch.optim.Optimizer, method: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the result of `moments` in a new optimiser; raises UpstreamError if the parameters do not match."""
    parameters = trainable_parameters(method)
    for name, tensor in tensors.items():
        parameter_name, _, key = name.removeprefix(PREFIX).rpartition(".")
        if parameter_name not in parameters or tensor.shape not in (parameters[parameter_name].shape, torch.Size([])):
            raise UpstreamError(f"the training state holds '{name}', which is of another method or size; start anew")
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
