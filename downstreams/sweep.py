"""K heads that learn side by side from the same batches, each as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from downstreams.base import Head, HeadError

OptimizerState = dict[str, Tensor]


class Setting(NamedTuple):
    """What tells the heads of a sweep apart: learning rate, and the seed of initialisation and dropout.

    layer: the only one that the head feeds on, None for the sum that it learns.
    """

    lr: float
    seed: int
    layer: int | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """How heads are trained, whatever the task.

    epochs: most passes over the training clips.
    optimizer: Adam (Kingma and Ba, 2015) or AdamW (Loshchilov and Hutter, 2019).
    clip: largest norm of one head's gradient, None for no limit.
    patience: epochs without a better validation score after which a head stops, None for never. It takes a score that
        has moved since the first epoch, or is perfect.
    encoder_lr: rate of a tuned encoder, None for that of its head.
    """

    epochs: int = 30
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    patience: int | None = None
    encoder_lr: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "adamw"):
            raise HeadError(f"optimizer must be 'adam' or 'adamw', not {self.optimizer!r}")
        if self.epochs < 1 or (self.patience is not None and self.patience < 1):
            raise HeadError("epochs and patience must be at least 1")
        if self.clip is not None and not self.clip > 0:
            raise HeadError(f"clip must be positive or none, not {self.clip}")


class ParallelHeads(Protocol):
    """The heads of some settings; `active` numbers those still learning, `diverged` those whose loss was not finite."""

    heads: Sequence[Head]
    active: list[int]
    diverged: set[int]

    def step(self, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> dict[int, float]:
        """Loss of each active head on a batch, before one step of its optimiser."""

    def outputs(self, inputs: Tensor, lengths: Tensor | None) -> dict[int, Tensor]:
        """Outputs of each active head on a batch, without gradients or dropout."""

    def state(self, number: int) -> OptimizerState:
        """Copy of one head's weights."""

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with these of the active heads only."""


@contextmanager
def seeded(seed: int, step: int = 0) -> Iterator[None]:
    """Random numbers that depend on seed and step alone; the caller's go on afterwards as if nothing was drawn."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed * 1_000_003 + step) % 2**63)
        yield


def make_optimizer(groups: list[dict[str, Any]], recipe: TrainingOptions) -> torch.optim.Optimizer:
    """The recipe's optimiser over parameter groups, each with its own learning rate."""
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    # One pass through memory per step instead of about ten.
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return kind(groups, weight_decay=recipe.weight_decay, fused=fused)


class Stacked:
    """Heads with `batched = True` as one computation: parameters stacked (K, ...), `torch.func.vmap` over the K.

    Gradients are clipped and the optimiser steps per head; a head's weights are what they would be without the others,
    up to the rounding of batched matrix products.
    """

    def __init__(
        self, heads: Sequence[Head], settings: Sequence[Setting] = (), recipe: TrainingOptions | None = None
    ) -> None:
        self.heads, self.active, self.diverged = heads, list(range(len(heads))), set[int]()
        self.names = [name for name, _ in heads[0].named_parameters()]
        each = [dict(head.named_parameters()) for head in heads]
        self.stacks = [torch.stack([own[name].detach() for own in each]).requires_grad_() for name in self.names]
        self.leaves = [[nn.Parameter(stack.detach()[k]) for stack in self.stacks] for k in self.active]
        self._share()
        if recipe is not None:
            self.recipe, self.optimizer = recipe, self._optimizer(settings, recipe)

    def _share(self) -> None:
        """Make leaves and their gradients rows of stacks, so that torch's own optimisers serve each at its own rate."""
        self.gradients = [torch.zeros_like(stack) for stack in self.stacks]
        for row, number in enumerate(self.active):
            for leaf, stack, gradient in zip(self.leaves[number], self.stacks, self.gradients, strict=True):
                leaf.data, leaf.grad = stack.detach()[row], gradient[row]

    def _optimizer(self, settings: Sequence[Setting], recipe: TrainingOptions) -> torch.optim.Optimizer:
        rates: dict[float, list[nn.Parameter]] = {}
        for setting, head, leaves in zip(settings, self.heads, self.leaves, strict=True):
            learning = [own.requires_grad for own in head.parameters()]
            rates.setdefault(setting.lr, []).extend(compress(leaves, learning))
        return make_optimizer([{"params": leaves, "lr": lr} for lr, leaves in rates.items()], recipe)

    def step(self, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> dict[int, float]:
        """See `ParallelHeads`; a head whose loss is not finite leaves before it steps."""
        losses = self._map(lambda outputs: self.heads[0].loss(outputs, encoded, lengths), inputs, lengths)
        values = dict(zip(self.active, losses.tolist(), strict=True))
        lost = {number for number, value in values.items() if not math.isfinite(value)}
        if lost:
            self.diverged |= lost
            self.keep([number for number in self.active if number not in lost])
            return self.step(inputs, lengths, encoded) if self.active else {}
        self._descend(torch.autograd.grad(losses.sum(), self.stacks, materialize_grads=True))
        return values

    def _descend(self, gradients: Sequence[Tensor]) -> None:
        scale = torch.ones(len(self.active), device=gradients[0].device)
        if self.recipe.clip is not None:
            norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in gradients])
            scale = (self.recipe.clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1)
        for mine, grad in zip(self.gradients, gradients, strict=True):
            torch.mul(grad, scale.view(-1, *[1] * (grad.dim() - 1)), out=mine)
        self.optimizer.step()

    @torch.no_grad()
    def outputs(self, inputs: Tensor, lengths: Tensor | None) -> dict[int, Tensor]:
        """See `ParallelHeads`."""
        return dict(zip(self.active, self._map(lambda outputs: outputs, inputs, lengths), strict=True))

    def _map(self, function: Any, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        def one(stacks: Sequence[Tensor]) -> Tensor:
            own = dict(zip(self.names, stacks, strict=True))
            return function(functional_call(self.heads[0], own, (inputs, lengths)))

        return vmap(one)(self.stacks)

    def state(self, number: int) -> OptimizerState:
        """See `ParallelHeads`."""
        own = {name: leaf.detach().clone() for name, leaf in zip(self.names, self.leaves[number], strict=True)}
        return {**self.heads[number].state_dict(), **own}

    def keep(self, numbers: Sequence[int]) -> None:
        """See `ParallelHeads`."""
        if list(numbers) == self.active:
            return
        rows = [self.active.index(number) for number in numbers]
        for number in set(self.active) - set(numbers):
            for leaf in self.leaves[number]:
                leaf.data, leaf.grad = leaf.data.clone(), None
        self.stacks = [stack.detach()[rows].requires_grad_() for stack in self.stacks]
        self.active = list(numbers)
        self._share()


class Separate:
    """Heads one after the other on each batch, every one with its own optimiser and random numbers.

    A tuned encoder belongs to a single head and learns with it.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        settings: Sequence[Setting] = (),
        recipe: TrainingOptions | None = None,
        encoder: nn.Module | None = None,
    ) -> None:
        self.heads, self.active, self.diverged = heads, list(range(len(heads))), set[int]()
        self.settings, self.encoder, self.steps = settings, encoder, 0
        if recipe is not None:
            self.recipe = recipe
            pairs = zip(heads, settings, strict=True)
            self.optimizers = [make_optimizer(self._groups(head, setting.lr), recipe) for head, setting in pairs]

    def _groups(self, head: Head, lr: float) -> list[dict[str, Any]]:
        groups = [{"params": [p for p in head.parameters() if p.requires_grad], "lr": lr}]
        if self.encoder is not None:
            tuned = [p for p in self.encoder.parameters() if p.requires_grad]
            groups.append({"params": tuned, "lr": lr if self.recipe.encoder_lr is None else self.recipe.encoder_lr})
        return groups

    def step(self, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> dict[int, float]:
        """See `ParallelHeads`; a head whose loss is not finite leaves before it steps."""
        self.steps += 1
        values = {number: self._step(number, inputs, lengths, encoded) for number in self.active}
        lost = {number for number, value in values.items() if value is None}
        self.diverged |= lost
        self.keep([number for number in self.active if number not in lost])
        return {number: value for number, value in values.items() if value is not None}

    def _step(self, number: int, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> float | None:
        head, optimizer = self.heads[number].train(), self.optimizers[number]
        with seeded(self.settings[number].seed, self.steps):
            loss = head.loss(head(inputs, lengths), encoded, lengths)
        if not torch.isfinite(loss):
            return None
        optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.recipe.clip)
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def outputs(self, inputs: Tensor, lengths: Tensor | None) -> dict[int, Tensor]:
        """See `ParallelHeads`."""
        return {number: self.heads[number].eval()(inputs, lengths) for number in self.active}

    def state(self, number: int) -> OptimizerState:
        """See `ParallelHeads`."""
        return {name: value.detach().clone() for name, value in self.heads[number].state_dict().items()}

    def keep(self, numbers: Sequence[int]) -> None:
        """See `ParallelHeads`."""
        self.active = list(numbers)
