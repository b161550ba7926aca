"""Speech recognition head: characters by connectionist temporal classification (CTC; Graves et al., 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from downstreams.base import Head, LayerSum, length_mask, lengths_of, match_references
from downstreams.errors import HeadError
from downstreams.metrics import Errors, character_errors, error_rate, word_errors

BLANK = 0


class Spelling(NamedTuple):
    """Encoded texts: character numbers (B, longest text) padded with the blank, and characters per text (B,)."""

    characters: Tensor
    lengths: Tensor


class Transcription(Head):
    """SUPERB's ASR head (Yang et al., 2021): layer sum, Linear, bidirectional LSTMs, Linear and greedy CTC decoding.

    SUPERB's size is projection 1024, hidden 1024, two layers, dropout 0.2, stride 1. The alphabet holds the characters
    of the training texts, with their case unchanged and white space normalised. A reference's characters outside the
    alphabet count as errors.
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
        """projection: width of the first Linear; hidden: units per direction; stride: frames concatenated to one step.

        recurrent_layers: may be 0; dropout: probability after each recurrent layer; top_layer: use the last layer
        instead of the layer sum, as is usual where the encoder is fine-tuned. See `Head` for the others.
        """
        super().__init__(layers, dim, targets)
        _check_sizes(projection=projection, hidden=hidden, stride=stride)
        if recurrent_layers < 0:
            raise HeadError(f"recurrent_layers must be at least 0, not {recurrent_layers}")
        self.alphabet = sorted(set("".join(map(collapse_spaces, targets))))
        if not self.alphabet:
            raise HeadError("transcription needs text in the training clips; all targets are empty")
        self.index = {character: number for number, character in enumerate(self.alphabet, start=BLANK + 1)}
        self.stride = stride
        self.layer_sum = LayerSum(layers).requires_grad_(not top_layer)
        if top_layer:
            self.layer_sum.logits.data[:-1] = -torch.inf
        self.projection = nn.Linear(dim, projection)
        sizes = [projection * stride, *[2 * hidden] * recurrent_layers][:recurrent_layers]
        self.recurrent = nn.ModuleList(BidirectionalLSTM(size, hidden) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * hidden if sizes else projection * stride, 1 + len(self.alphabet))

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, ceil(T / stride), 1 + characters), the blank first."""
        lengths = lengths_of(inputs, lengths)
        hidden = self.projection(self.layer_sum(inputs)) * length_mask(lengths, inputs.shape[1])[:, :, None]
        hidden = nn.functional.pad(hidden, (0, 0, 0, -hidden.shape[1] % self.stride))
        hidden = hidden.unflatten(1, (-1, self.stride)).flatten(2)
        steps = self.steps(lengths)
        for layer in self.recurrent:
            hidden = self.dropout(layer(hidden, steps))
        return self.output(hidden)

    def steps(self, lengths: Tensor) -> Tensor:
        """Return the number of output steps (B,) of clips with `lengths` frames (B,)."""
        return (lengths + self.stride - 1) // self.stride

    def encode(self, targets: Sequence[str]) -> Spelling:
        """Return the character numbers. Raises HeadError where a character is in no training text."""
        texts = [collapse_spaces(target) for target in targets]
        unknown = sorted(set("".join(texts)) - set(self.index))
        if unknown:
            raise HeadError(
                f"character {unknown[0]!r} is in no training text; the alphabet is {''.join(self.alphabet)!r}"
            )
        rows = [torch.tensor([self.index[character] for character in text], dtype=torch.long) for text in texts]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=BLANK)
        return Spelling(padded, torch.tensor([len(row) for row in rows]))

    def loss(self, outputs: Tensor, encoded: Any, lengths: Tensor | None = None) -> Tensor:
        """Return the CTC loss in nats per character, averaged over clips.

        It is zero for a clip that has fewer steps than its text needs.
        """
        log_probabilities = outputs.log_softmax(2).transpose(0, 1)
        steps = self._steps_of(outputs, lengths)
        return nn.functional.ctc_loss(
            log_probabilities, encoded.characters, steps, encoded.lengths, blank=BLANK, zero_infinity=True
        )

    def unusable(self, encoded: Any, lengths: Tensor | None) -> int:
        """Return the number of clips that have fewer steps than their text needs.

        A text needs one step per character, and one more between two equal characters in a row.
        """
        if lengths is None:
            return 0
        repeats = (encoded.characters[:, 1:] == encoded.characters[:, :-1]) & (encoded.characters[:, 1:] != BLANK)
        return int((self.steps(lengths) < encoded.lengths + repeats.sum(1)).sum())

    def decode(self, outputs: Tensor, lengths: Tensor | None = None) -> list[str]:
        """Return B texts by greedy decoding: the likeliest character of each step, repeats merged, blanks removed."""
        paths, steps = outputs.argmax(2).tolist(), self._steps_of(outputs, lengths).tolist()
        return [self._spell(path[:size]) for path, size in zip(paths, steps, strict=True)]

    def _spell(self, path: list[int]) -> str:
        pairs = zip([BLANK, *path], path, strict=False)
        numbers = [number for previous, number in pairs if number not in (previous, BLANK)]
        return collapse_spaces("".join(self.alphabet[number - BLANK - 1] for number in numbers))

    def _steps_of(self, outputs: Tensor, lengths: Tensor | None) -> Tensor:
        return lengths_of(outputs, None) if lengths is None else self.steps(lengths)

    @classmethod
    def score(
        cls, predictions: Mapping[str, str], references: Mapping[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return WER and CER over the corpus in percent, and each clip's texts and its word and character edits."""
        rows = match_references(predictions, references)
        words = [word_errors(reference, hypothesis) for _, hypothesis, reference in rows]
        characters = [character_errors(reference, hypothesis) for _, hypothesis, reference in rows]
        outcomes = [
            {
                "id": key,
                "reference": reference,
                "hypothesis": hypothesis,
                **_edit_counts("word", in_words),
                **_edit_counts("character", in_characters),
            }
            for (key, hypothesis, reference), in_words, in_characters in zip(rows, words, characters, strict=True)
        ]
        return {"wer": 100 * error_rate(words), "cer": 100 * error_rate(characters)}, outcomes


class BidirectionalLSTM(nn.Module):
    """One LSTM layer in each direction; every clip is reversed within its own length, so padding has no influence.

    On a CPU it is three to four times as fast as a packed sequence, and gives the same result.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.onward = nn.LSTM(dim, hidden, batch_first=True)
        self.homeward = nn.LSTM(dim, hidden, batch_first=True)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Map (B, T, D) with `lengths` valid steps (B,) to (B, T, 2 hidden), zero beyond each length."""
        positions = torch.arange(steps.shape[1], device=steps.device)[None, :]
        reversal = torch.where(positions < lengths[:, None], lengths[:, None] - 1 - positions, positions)
        forward = self.onward(steps)[0]
        backward = _reorder(self.homeward(_reorder(steps, reversal))[0], reversal)
        return torch.cat([forward, backward], 2) * (positions < lengths[:, None])[:, :, None]


def collapse_spaces(text: str) -> str:
    """Return the text with each run of white space replaced by one space, and none at its start or end."""
    return " ".join(text.split())


def _reorder(steps: Tensor, order: Tensor) -> Tensor:
    return steps.gather(1, order[:, :, None].expand_as(steps))


def _edit_counts(unit: str, errors: Errors) -> dict[str, int]:
    return {f"{unit}_{name}": count for name, count in errors._asdict().items()}


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise HeadError(f"{name} must be at least 1, not {size}")
