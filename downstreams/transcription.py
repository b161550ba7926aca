"""Characters by connectionist temporal classification: speech recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from downstreams.base import Head, HeadError, LayerSum, lengths_of, matched, valid
from downstreams.metrics import Errors, character_errors, error_rate, word_errors

BLANK = 0


class Spelling(NamedTuple):
    """Texts as numbers: characters (B, longest) padded with the blank, and how many each text has (B,)."""

    characters: Tensor
    lengths: Tensor


class Transcription(Head):
    """Layer sum, Linear, bidirectional LSTMs, Linear, CTC, decoded greedily (SUPERB's ASR; Yang et al., 2021).

    SUPERB's size is projection 1024, hidden 1024, two layers, dropout 0.2, stride 1. The alphabet is that of the
    training texts, upper and lower case as they are, white space normalised; other characters of a reference count as
    errors.
    """

    view = "frames"
    judged_on = "labels"
    closed = False
    metrics: ClassVar[Mapping[str, bool]] = {"wer": False, "cer": False}

    def __init__(
        self,
        layers: int,
        dim: int,
        targets: Sequence[str],
        projection: int = 1024,
        hidden: int = 1024,
        recurrent_layers: int = 2,
        stride: int = 1,
        dropout: float = 0.2,
        top_layer: bool = False,
    ) -> None:
        """projection: width of the first Linear; hidden: units per direction; stride: frames joined into one step.

        dropout: probability, after each recurrent layer; there may be none of these. top_layer: takes the last layer in
        place of a sum, as is usual where the encoder learns too. See `Head` for the others.
        """
        super().__init__(layers, dim, targets)
        _check(projection=projection, hidden=hidden, stride=stride)
        if recurrent_layers < 0:
            raise HeadError(f"recurrent_layers must be at least 0, not {recurrent_layers}")
        self.alphabet = sorted(set("".join(map(normalized, targets))))
        if not self.alphabet:
            raise HeadError("transcription needs text in the training clips; all targets are empty")
        self.index = {character: number for number, character in enumerate(self.alphabet, start=BLANK + 1)}
        self.stride = stride
        self.layer_sum = LayerSum(layers).requires_grad_(not top_layer)
        if top_layer:
            self.layer_sum.logits.data[:-1] = -torch.inf
        self.projection = nn.Linear(dim, projection)
        sizes = [projection * stride, *[2 * hidden] * recurrent_layers][:recurrent_layers]
        self.recurrent = nn.ModuleList(BothWays(size, hidden) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * hidden if sizes else projection * stride, 1 + len(self.alphabet))

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, ceil(T / stride), 1 + characters), the blank first."""
        lengths = lengths_of(inputs, lengths)
        hidden = self.projection(self.layer_sum(inputs)) * valid(lengths, inputs.shape[1])[:, :, None]
        hidden = nn.functional.pad(hidden, (0, 0, 0, -hidden.shape[1] % self.stride))
        hidden = hidden.unflatten(1, (-1, self.stride)).flatten(2)
        steps = self.steps(lengths)
        for layer in self.recurrent:
            hidden = self.dropout(layer(hidden, steps))
        return self.output(hidden)

    def steps(self, lengths: Tensor) -> Tensor:
        """Output steps (B,) of clips with `lengths` frames (B,)."""
        return (lengths + self.stride - 1) // self.stride

    def encode(self, targets: Sequence[str]) -> Spelling:
        """Character numbers; raises HeadError where a character is in no training text."""
        texts = [normalized(target) for target in targets]
        unknown = sorted(set("".join(texts)) - set(self.index))
        if unknown:
            raise HeadError(
                f"character {unknown[0]!r} is in no training text; the alphabet is {''.join(self.alphabet)!r}"
            )
        rows = [torch.tensor([self.index[character] for character in text], dtype=torch.long) for text in texts]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=BLANK)
        return Spelling(padded, torch.tensor([len(row) for row in rows]))

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """CTC loss in nats per character, mean over clips; zero for clips with fewer steps than their text needs."""
        logs = outputs.log_softmax(2).transpose(0, 1)
        steps = self._steps_of(outputs, lengths)
        return nn.functional.ctc_loss(logs, encoded.characters, steps, encoded.lengths, blank=BLANK, zero_infinity=True)

    def unusable(self, encoded: Any, lengths: Tensor | None) -> int:
        """Clips with fewer steps than their text needs, one per character and one more between equal neighbours."""
        if lengths is None:
            return 0
        repeats = (encoded.characters[:, 1:] == encoded.characters[:, :-1]) & (encoded.characters[:, 1:] != BLANK)
        return int((self.steps(lengths) < encoded.lengths + repeats.sum(1)).sum())

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[str]:
        """The likeliest character of each step, repeats merged, blanks dropped."""
        best, steps = outputs.argmax(2).tolist(), self._steps_of(outputs, lengths).tolist()
        return [self._spell(row[:size]) for row, size in zip(best, steps, strict=True)]

    def _spell(self, path: list[int]) -> str:
        merged = [now for before, now in zip([BLANK, *path], path, strict=False) if now not in (before, BLANK)]
        return normalized("".join(self.alphabet[number - BLANK - 1] for number in merged))

    def _steps_of(self, outputs: Tensor, lengths: Tensor | None) -> Tensor:
        return lengths_of(outputs, None) if lengths is None else self.steps(lengths)

    @classmethod
    def score(
        cls, predictions: Mapping[str, str], references: Mapping[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """WER and CER over the corpus in percent, and per clip the texts and the edits of words and of characters."""
        rows = matched(predictions, references)
        words = [word_errors(reference, hypothesis) for _, hypothesis, reference in rows]
        characters = [character_errors(reference, hypothesis) for _, hypothesis, reference in rows]
        outcomes = [
            {"id": key, "reference": reference, "hypothesis": hypothesis, **_named("word", w), **_named("character", c)}
            for (key, hypothesis, reference), w, c in zip(rows, words, characters, strict=True)
        ]
        return {"wer": 100 * error_rate(words), "cer": 100 * error_rate(characters)}, outcomes


class BothWays(nn.Module):
    """One LSTM layer in each direction, every clip turned round within its own length, so that padding plays no part.

    Three to four times as fast on a CPU as a packed sequence, with the same result.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.onward = nn.LSTM(dim, hidden, batch_first=True)
        self.homeward = nn.LSTM(dim, hidden, batch_first=True)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) and valid steps (B,) to (B, T, 2 hidden), zero beyond each length."""
        place = torch.arange(steps.shape[1], device=steps.device)[None, :]
        turned = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
        there = self.onward(steps)[0]
        back = _reorder(self.homeward(_reorder(steps, turned))[0], turned)
        return torch.cat([there, back], 2) * (place < lengths[:, None])[:, :, None]


def normalized(text: str) -> str:
    """The text with runs of white space as one space and none outside."""
    return " ".join(text.split())


def _reorder(steps: Tensor, order: Tensor) -> Tensor:
    return steps.gather(1, order[:, :, None].expand_as(steps))


def _named(unit: str, errors: Errors) -> dict[str, int]:
    return {f"{unit}_{name}": count for name, count in errors._asdict().items()}


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise HeadError(f"{name} must be at least 1, not {size}")
