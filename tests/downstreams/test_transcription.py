from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from downstreams.errors import HeadError
from downstreams.transcription import BidirectionalLSTM, Transcription

TEXTS = ["ab", "b  a", " aab"]


def small(**options: int | float) -> Transcription:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"projection": 4, "hidden": 5, "recurrent_layers": 2, "dropout": 0.0}
    return Transcription(2, 3, TEXTS, **{**sizes, **options})


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(number for number, _ in itertools.groupby(path) if number)


def test_the_recurrent_layer_is_the_packed_bidirectional_lstm() -> None:
    torch.manual_seed(0)
    ours, theirs = BidirectionalLSTM(4, 5), nn.LSTM(4, 5, batch_first=True, bidirectional=True)
    for name, weight in theirs.named_parameters():
        own = ours.homeward if name.endswith("_reverse") else ours.onward
        weight.data = getattr(own, name.removesuffix("_reverse")).data
    steps, lengths = torch.randn(4, 9, 4), torch.tensor([3, 9, 1, 6])
    packed = nn.utils.rnn.pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=9)
    torch.testing.assert_close(ours(steps, lengths), expected)


def test_the_loss_is_the_probability_of_all_paths_that_spell_the_text() -> None:
    head, lengths = small().double(), torch.tensor([5, 4])
    outputs = torch.randn(2, 5, 4, dtype=torch.double)
    encoded = head.encode(["ab", "aa"])
    expected = []
    for row, (text, steps) in enumerate(zip([(2, 3), (2, 2)], lengths, strict=True)):
        logs = outputs[row, :steps].log_softmax(1)
        paths = [path for path in itertools.product(range(4), repeat=int(steps)) if collapse(path) == text]
        scores = [sum(logs[step, number].item() for step, number in enumerate(path)) for path in paths]
        expected.append(-math.log(sum(map(math.exp, scores))) / len(text))
    assert head.loss(outputs, encoded, lengths).item() == pytest.approx(sum(expected) / 2, abs=1e-9)


def test_without_recurrent_layers_each_step_is_read_from_its_own_frames() -> None:
    head, lengths = small(recurrent_layers=0, stride=2), torch.tensor([5, 3])
    frames = torch.randn(2, 6, 2, 3)
    summed = nn.functional.pad(head.projection(frames.mean(2)), (0, 0, 0, 0))
    for clip, length in enumerate(lengths.tolist()):
        for step in range(-(-length // 2)):
            pair = [summed[clip, at] if at < length else torch.zeros(4) for at in (2 * step, 2 * step + 1)]
            torch.testing.assert_close(head(frames, lengths)[clip, step], head.output(torch.cat(pair)))
    with pytest.raises(HeadError, match="recurrent_layers must be at least 0, not -1"):
        small(recurrent_layers=-1)


def test_the_top_layer_alone_may_be_read_and_stays_alone_in_training() -> None:
    torch.manual_seed(0)
    head, frames, lengths = small(top_layer=True), torch.randn(3, 8, 2, 3), torch.tensor([8, 8, 8])
    other = frames.clone()
    other[:, :, 0] = torch.randn(3, 8, 3)
    torch.testing.assert_close(head(frames, lengths), head(other, lengths))
    head.loss(head(frames, lengths), head.encode(["ab", "aa", "b"]), lengths).backward()
    assert [name for name, each in head.named_parameters() if each.grad is None] == ["layer_sum.logits"]
    assert head.layer_sum.weights.tolist() == [0.0, 1.0]


def test_clips_too_short_for_their_text_are_counted_and_teach_nothing() -> None:
    head = small(stride=2)
    encoded = head.encode(["ab", "aa", "b", "aab"])
    lengths = torch.tensor([3, 4, 1, 8])
    assert head.steps(lengths).tolist() == [2, 2, 1, 4]
    assert head.unusable(encoded, lengths) == 1
    outputs = torch.randn(4, 4, 4, requires_grad=True)
    head.loss(outputs, encoded, lengths).backward()
    assert outputs.grad is not None
    assert [bool(row.abs().sum() > 0) for row in outputs.grad] == [True, False, True, True]
    assert torch.isfinite(outputs.grad).all()


def test_an_empty_text_can_be_learnt() -> None:
    head = small()
    loss = head.loss(torch.randn(2, 5, 4), head.encode(["", "ab"]), torch.tensor([5, 5]))
    assert torch.isfinite(loss)
    assert loss > 0


def test_greedy_decoding_merges_repeats_then_drops_blanks() -> None:
    head = small()
    assert head.alphabet == [" ", "a", "b"]
    paths = torch.tensor([[2, 2, 0, 2, 3, 3], [1, 0, 3, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    assert head.decode(nn.functional.one_hot(paths, 4).float(), torch.tensor([6, 6, 6])) == ["aab", "b a", ""]
    assert head.decode(nn.functional.one_hot(paths, 4).float(), torch.tensor([3, 3, 3])) == ["a", "b", ""]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_stride_joins_whole_frames(stride: int) -> None:
    head, lengths = small(stride=stride), torch.tensor([7, 5])
    outputs = head(torch.randn(2, 7, 2, 3), lengths)
    assert outputs.shape == (2, -(-7 // stride), 4)
    assert head.steps(lengths).tolist() == [-(-7 // stride), -(-5 // stride)]


def test_every_frame_of_a_stride_is_heard() -> None:
    head, frames = small(stride=3), torch.randn(1, 6, 2, 3, requires_grad=True)
    head(frames, torch.tensor([6])).sum().backward()
    assert frames.grad is not None
    assert (frames.grad.abs().sum((0, 2, 3)) > 0).all()


def test_dropout_acts_in_training_alone() -> None:
    head, frames = small(dropout=0.5), torch.randn(2, 7, 2, 3)
    assert not torch.equal(head.train()(frames), head(frames))
    assert torch.equal(head.eval()(frames), head(frames))


def test_the_published_size_is_the_default() -> None:
    shapes: dict[str, Tensor] = dict(Transcription(1, 240, TEXTS).named_parameters())
    assert shapes["projection.weight"].shape == (1024, 240)
    assert shapes["recurrent.0.onward.weight_hh_l0"].shape == (4096, 1024)
    assert shapes["recurrent.1.homeward.weight_ih_l0"].shape == (4096, 2048)
    assert "recurrent.2.onward.weight_ih_l0" not in shapes


def test_unknown_characters_are_refused_in_training_and_are_errors_in_scoring() -> None:
    with pytest.raises(HeadError, match="character 'z' is in no training text"):
        small().encode(["abz"])
    scores, rows = Transcription.score({"u": "a b", "v": "ab ab"}, {"u": "a  z", "v": "ab"})
    assert scores == pytest.approx({"wer": 100 * 2 / 3, "cer": 100 * 4 / 5})
    assert rows[0]["word_substitutions"] == 1
    assert rows[1]["word_insertions"] == 1
    assert rows[1]["character_insertions"] == 3
    assert [rows[0][f"character_{kind}"] for kind in ("substitutions", "deletions", "insertions", "hits")] == [
        1,
        0,
        0,
        2,
    ]


def test_case_is_kept() -> None:
    head = Transcription(1, 3, ["Ab", "aB"], projection=4, hidden=4)
    assert head.alphabet == ["A", "B", "a", "b"]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(HeadError, match="all targets are empty"):
        Transcription(1, 3, ["", "  "])
    with pytest.raises(HeadError, match="stride must be at least 1, not 0"):
        small(stride=0)
