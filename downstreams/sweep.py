"""Training of K heads on the same batches; the result of each head is independent of the others."""

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

from downstreams.base import Head
from downstreams.errors import HeadError

OptimizerState = dict[str, Tensor]


class Setting(NamedTuple):
    """The settings in which the heads of a sweep differ: learning rate, and the seed of initialisation and dropout.

    layer: the single layer that the head uses, None for the learned weighted sum.
    """

    lr: float
    seed: int
    layer: int | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """The options of head training that do not depend on the task.

    epochs: largest number of passes over the training clips.
    optimizer: Adam (Kingma and Ba, 2015) or AdamW (Loshchilov and Hutter, 2019).
    clip: largest norm of one head's gradient, None for no limit.
    patience: epochs without a better validation score after which a head stops, None for never. Training does not
        stop while the score has been the same in every epoch, unless it is perfect.
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
    """The heads of a list of settings, by number.

    `active` are the heads still in training; `diverged` are those whose loss or outputs were not finite.
    """

    heads: Sequence[Head]
    active: list[int]
    diverged: set[int]

    def step(self, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> dict[int, float]:
        """Take one optimiser step per active head, and return the losses from before the step."""

    def outputs(self, inputs: Tensor, lengths: Tensor | None) -> dict[int, Tensor]:
        """Return the outputs of each active head on a batch, without gradients or dropout."""

    def state(self, number: int) -> OptimizerState:
        """Return a copy of one head's state dict."""

    def keep(self, numbers: Sequence[int]) -> None:
        """Continue with these of the active heads only."""


@contextmanager
def fixed_seed(seed: int, step: int = 0) -> Iterator[None]:
    """Seed torch from seed and step inside the context, and restore the random state of before at its end."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed * 1_000_003 + step) % 2**63)
        yield


def make_optimizer(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.Optimizer:
    """Return the optimiser of the options over parameter groups, each with a learning rate of its own."""
    optimizer = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    # A fused step reads the memory once instead of about ten times.
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return optimizer(groups, weight_decay=options.weight_decay, fused=fused)


class Stacked:
    """Heads with `batched = True`, computed by `torch.func.vmap` over their stacked parameters (K, ...).

    Gradient clipping and optimiser steps are per head. A head's weights are equal to those of training it alone, up to
    the rounding of batched matrix products.
    """

    def __init__(
        self, heads: Sequence[Head], settings: Sequence[Setting] = (), options: TrainingOptions | None = None
    ) -> None:
        self.heads, self.active, self.diverged = heads, list(range(len(heads))), set[int]()
        self.names = [name for name, _ in heads[0].named_parameters()]
        by_name = [dict(head.named_parameters()) for head in heads]
        self.stacks = [
            torch.stack([parameters[name].detach() for parameters in by_name]).requires_grad_() for name in self.names
        ]
        self.leaves = [[nn.Parameter(stack.detach()[k]) for stack in self.stacks] for k in self.active]
        self._share()
        if options is not None:
            self.options, self.optimizer = options, self._optimizer(settings, options)

    def _share(self) -> None:
        """Make each head's leaves and their gradients views of rows of the stacks.

        A torch optimiser can then update each head with its own learning rate.
        """
        self.gradients = [torch.zeros_like(stack) for stack in self.stacks]
        for row, number in enumerate(self.active):
            for leaf, stack, gradient in zip(self.leaves[number], self.stacks, self.gradients, strict=True):
                leaf.data, leaf.grad = stack.detach()[row], gradient[row]

    def _optimizer(self, settings: Sequence[Setting], options: TrainingOptions) -> torch.optim.Optimizer:
        rates: dict[float, list[nn.Parameter]] = {}
        for setting, head, leaves in zip(settings, self.heads, self.leaves, strict=True):
            trainable = [parameter.requires_grad for parameter in head.parameters()]
            rates.setdefault(setting.lr, []).extend(compress(leaves, trainable))
        return make_optimizer([{"params": leaves, "lr": lr} for lr, leaves in rates.items()], options)

    def step(self, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> dict[int, float]:
        """See `ParallelHeads`; a head whose loss is not finite is removed before its step."""
        losses = self._map(lambda outputs: self.heads[0].loss(outputs, encoded, lengths), inputs, lengths)
        values = dict(zip(self.active, losses.tolist(), strict=True))
        not_finite = {number for number, value in values.items() if not math.isfinite(value)}
        if not_finite:
            self.diverged |= not_finite
            self.keep([number for number in self.active if number not in not_finite])
            return self.step(inputs, lengths, encoded) if self.active else {}
        self._update(torch.autograd.grad(losses.sum(), self.stacks, materialize_grads=True))
        return values

    @torch.no_grad()  # before torch 2.8, a gradient that autograd fills with zeros requires a gradient itself
    def _update(self, gradients: Sequence[Tensor]) -> None:
        scale = torch.ones(len(self.active), device=gradients[0].device)
        if self.options.clip is not None:
            norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in gradients])
            scale = (self.options.clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1)
        for clipped, grad in zip(self.gradients, gradients, strict=True):
            torch.mul(grad, scale.view(-1, *[1] * (grad.dim() - 1)), out=clipped)
        self.optimizer.step()

    @torch.no_grad()
    def outputs(self, inputs: Tensor, lengths: Tensor | None) -> dict[int, Tensor]:
        """See `ParallelHeads`."""
        return dict(zip(self.active, self._map(lambda outputs: outputs, inputs, lengths), strict=True))

    def _map(self, function: Any, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        def apply(values: Sequence[Tensor]) -> Tensor:
            parameters = dict(zip(self.names, values, strict=True))
            return function(functional_call(self.heads[0], parameters, (inputs, lengths)))

        return vmap(apply)(self.stacks)

    def state(self, number: int) -> OptimizerState:
        """See `ParallelHeads`."""
        parameters = {name: leaf.detach().clone() for name, leaf in zip(self.names, self.leaves[number], strict=True)}
        return {**self.heads[number].state_dict(), **parameters}

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
    """Heads trained one after the other on each batch, each with its own optimiser and random numbers.

    encoder: the encoder that is tuned with the head; there is then a single head.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        settings: Sequence[Setting] = (),
        options: TrainingOptions | None = None,
        encoder: nn.Module | None = None,
    ) -> None:
        self.heads, self.active, self.diverged = heads, list(range(len(heads))), set[int]()
        self.settings, self.encoder, self.steps = settings, encoder, 0
        if options is not None:
            self.options = options
            pairs = zip(heads, settings, strict=True)
            self.optimizers = [make_optimizer(self._groups(head, setting.lr), options) for head, setting in pairs]

    def _groups(self, head: Head, lr: float) -> list[dict[str, Any]]:
        groups = [{"params": [p for p in head.parameters() if p.requires_grad], "lr": lr}]
        if self.encoder is not None:
            trainable = [p for p in self.encoder.parameters() if p.requires_grad]
            groups.append(
                {"params": trainable, "lr": lr if self.options.encoder_lr is None else self.options.encoder_lr}
            )
        return groups

    def step(self, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> dict[int, float]:
        """See `ParallelHeads`; a head whose loss is not finite is removed before its step."""
        self.steps += 1
        values = {number: self._step(number, inputs, lengths, encoded) for number in self.active}
        not_finite = {number for number, value in values.items() if value is None}
        self.diverged |= not_finite
        self.keep([number for number in self.active if number not in not_finite])
        return {number: value for number, value in values.items() if value is not None}

    def _step(self, number: int, inputs: Tensor, lengths: Tensor | None, encoded: Any) -> float | None:
        head, optimizer = self.heads[number].train(), self.optimizers[number]
        with fixed_seed(self.settings[number].seed, self.steps):
            loss = head.loss(head(inputs, lengths), encoded, lengths)
        if not torch.isfinite(loss):
            return None
        optimizer.zero_grad()
        loss.backward()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(
                [p for group in optimizer.param_groups for p in group["params"]], self.options.clip
            )
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
