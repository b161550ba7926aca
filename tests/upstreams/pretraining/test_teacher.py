"""Teachers, compared with the formulas of their papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upstreams.pretraining.teacher import embedding_spread, follow, perceptron, teacher_of


def test_a_teacher_starts_as_its_student_apart_from_it_and_without_gradients() -> None:
    student = perceptron(4, 8, 2)
    teacher = teacher_of(student)
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(own, other)
        assert own.data_ptr() != other.data_ptr()
        assert other.requires_grad
        assert not own.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9995, 1.0])
def test_a_teacher_moves_by_what_momentum_leaves(momentum: float) -> None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(5, 3), teacher_of(nn.Linear(5, 3))
    expected = {n: momentum * t + (1 - momentum) * dict(student.named_parameters())[n] for n, t in named(teacher)}
    follow(teacher, student, momentum)
    for name, weight in named(teacher):
        torch.testing.assert_close(weight, expected[name])


def named(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, weight.detach().clone()) for name, weight in module.named_parameters()]


def test_a_teacher_keeps_its_own_statistics() -> None:
    student = nn.BatchNorm1d(3)
    teacher = teacher_of(student)
    student(torch.randn(10, 3) + 5)
    follow(teacher, student, 0.0)
    assert not teacher.running_mean.any()


def test_a_student_may_have_more_than_its_teacher_but_not_less() -> None:
    one, two = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    follow(teacher_of(one), two, 0.5)
    with pytest.raises(KeyError, match=r"1\.weight"):
        follow(teacher_of(two), one, 0.5)


def test_heads_have_two_layers_without_biases() -> None:
    head = perceptron(6, 10, 4)
    assert {name: tuple(weight.shape) for name, weight in head.named_parameters()} == {
        "0.weight": (10, 6),
        "1.weight": (10,),
        "1.bias": (10,),
        "3.weight": (4, 10),
    }
    inputs = torch.randn(7, 6)
    hidden = inputs @ head[0].weight.T
    normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(inputs), normal.relu() @ head[3].weight.T)


def test_spread_is_one_for_evenly_spread_outputs_and_none_for_collapsed_ones() -> None:
    torch.manual_seed(0)
    assert float(embedding_spread(3.0 * torch.randn(2000, 64))) == pytest.approx(1.0, abs=0.01)
    assert float(embedding_spread(torch.ones(20, 64) * torch.rand(20, 1))) == pytest.approx(0.0, abs=1e-5)
