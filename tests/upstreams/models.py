"""Tiny random transformers models, saved to folders as users have them, and reference layer stacks from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upstreams import create
from upstreams.base import UpstreamError
from upstreams.torchaudio_guard import guard

guard()

KINDS = {
    "data2vec-audio": "Data2VecAudio",
    "hubert": "Hubert",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "wav2vec2": "Wav2Vec2",
    "wav2vec2-conformer": "Wav2Vec2Conformer",
    "wavlm": "WavLM",
}
FAMILIES = KINDS | {"sew": "SEW", "sew-d": "SEWD", "wav2vec2-bert": "Wav2Vec2Bert"}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 4, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
SMALL_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "feature_projection_input_dim": 46,
    "conv_depthwise_kernel_size": 5,
}
SMALL_WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "vocab_size": 20,
    "max_source_positions": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SMALL_AST = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_length": 64,
    "num_mel_bins": 32,
    "time_stride": 10,
    "frequency_stride": 10,
}


def build(kind: str, head: str = "Model", **config: Any) -> Any:
    """Build a model whose weights, including biases and norms, are all random, so that no weight is 0 or 1."""
    import transformers

    family = FAMILIES.get(kind, kind)
    model = getattr(transformers, f"{family}{head}")(getattr(transformers, f"{family}Config")(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model


def save(model: Any, extractor: Any, folder: Path) -> str:
    """Save the model to a folder, and return its reference."""
    model.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    return f"hf:{folder}"


def waveform_extractor(normalize: bool = False) -> Any:
    import transformers

    return transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)


def mel_extractor(bands: int = 23) -> Any:
    """Return the feature extractor of Wav2Vec2-BERT; two of its frames give the 46 inputs of SMALL_BERT."""
    import transformers

    return transformers.SeamlessM4TFeatureExtractor(feature_size=bands, num_mel_bins=bands)


def hidden_states(model: Any, **inputs: Any) -> list[Tensor]:
    """Return transformers' hidden states, (B, T, D) each."""
    with torch.no_grad():
        return list(model(**inputs, output_hidden_states=True).hidden_states)


def plain_stack(blocks: Sequence[nn.Module], norm: nn.Module | None, run: Callable[[], object]) -> Tensor:
    """Collect by hooks the input of the first block and the output of every block, with the norm applied to the last.

    The result is (B, T, L, D).
    """
    states: list[Tensor] = []

    def before(_: Any, args: Any, kwargs: Any) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_: Any, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in blocks]
    with torch.no_grad():
        run()
        states[-1] = states[-1] if norm is None else norm(states[-1])
    for handle in handles:
        handle.remove()
    return torch.stack(states, dim=2)


def padded(clips: Sequence[Tensor], extra: int = 0, filling: float = float("nan")) -> tuple[Tensor, Tensor]:
    """Return clips as one batch (B, S), padded with NaN, and their lengths (B,)."""
    lengths = torch.tensor([len(clip) for clip in clips])
    waveforms = torch.full((len(clips), int(lengths.max()) + extra), filling)
    for row, clip in zip(waveforms, clips, strict=True):
        row[: len(clip)] = clip
    return waveforms, lengths


def relative_error(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two (T, L, D), relative to the largest value of the layer."""
    assert one.shape == other.shape
    scale = other.abs().amax(dim=(0, 2), keepdim=True)
    return float(((one - other).abs() / scale).max().detach())


def refusal_message(reference: str) -> str:
    """Return the message, one line, of the UpstreamError that a reference raises."""
    with pytest.raises(UpstreamError) as caught:
        create(reference)
    message = str(caught.value)
    assert "\n" not in message
    return message
