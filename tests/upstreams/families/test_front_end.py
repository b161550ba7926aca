"""Tests that a checkpoint's preprocessor_config.json is followed and that no setting is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.upstreams.models import (
    SMALL,
    SMALL_AST,
    SMALL_BERT,
    SMALL_WHISPER,
    build,
    mel_extractor,
    refusal_message,
    save,
    waveform_extractor,
)
from upstreams import create

NEEDED = {
    "Hubert": ("sampling_rate", "do_normalize"),
    "Wav2Vec2Bert": ("sampling_rate", "num_mel_bins", "stride"),
    "Whisper": ("sampling_rate", "feature_size", "n_fft", "hop_length", "chunk_length"),
    "AST": ("sampling_rate", "do_normalize", "mean", "std", "max_length", "num_mel_bins"),
}


def saved(kind: str, folder: Path) -> str:
    import transformers

    torch.manual_seed(0)
    bands = {"max_length": SMALL_AST["max_length"], "num_mel_bins": SMALL_AST["num_mel_bins"]}
    models: dict[str, tuple[dict[str, Any], Any]] = {
        "Hubert": (SMALL, waveform_extractor(True)),
        "Wav2Vec2Bert": (SMALL_BERT, mel_extractor()),
        "Whisper": (SMALL_WHISPER, transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)),
        "AST": (SMALL_AST, transformers.ASTFeatureExtractor(**bands)),
    }
    config, extractor = models[kind]
    return save(build(kind, **config), extractor, folder)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", NEEDED)
def test_each_setting_is_required_with_its_type_and_never_guessed(kind: str, tmp_path: Path) -> None:
    reference = saved(kind, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    whole = json.loads(path.read_text())
    create(reference)
    for key in NEEDED[kind]:
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        assert f"has no '{key}', and it is not guessed" in refusal_message(reference)
        for wrong in (None, "16000", [1]):
            path.write_text(json.dumps(whole | {key: wrong}))
            assert f"{key} in preprocessor_config.json of '{tmp_path}' is {wrong!r}; it must be" in refusal_message(
                reference
            )


def test_every_setting_counts(tmp_path: Path) -> None:
    reference = saved("Hubert", tmp_path)
    edit(tmp_path, sampling_rate=8_000, do_normalize=False)
    upstream = create(reference)
    assert upstream.sample_rate == 8_000
    assert upstream.settings()["normalize"] is False
    for wrong in (0, -16_000, True, 16_000.5, 3_999, 192_001, 10**12):
        edit(tmp_path, sampling_rate=wrong)
        assert f"is {wrong}; it must be a whole number from 4000 to 192000" in refusal_message(reference)


@pytest.mark.parametrize("wrong", ["\x1b[2J\nx" * 90, [[0] * 900], json.loads("[" * 450 + "]" * 450)])
def test_untrusted_text_is_escaped_and_shortened_in_messages(wrong: object, tmp_path: Path) -> None:
    reference = saved("Hubert", tmp_path)
    for key in ("sampling_rate", "feature_extractor_type"):
        edit(tmp_path, **{key: wrong})
        message = refusal_message(reference).replace(str(tmp_path), "")
        assert message.isprintable()
        assert len(message) < 400


def test_a_standard_deviation_of_zero_is_refused(tmp_path: Path) -> None:
    reference = saved("AST", tmp_path)
    edit(tmp_path, std=0.0)
    assert "it must be above zero" in refusal_message(reference)


@pytest.mark.parametrize("kind", NEEDED)
def test_the_extractor_of_another_model_is_refused(kind: str, tmp_path: Path) -> None:
    reference = saved(kind, tmp_path)
    edit(tmp_path, feature_extractor_type="ClapFeatureExtractor")
    assert "is for a ClapFeatureExtractor, but a model of type" in refusal_message(reference)


def test_the_files_of_2021_that_name_no_extractor_are_read(tmp_path: Path) -> None:
    reference = saved("Hubert", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    assert create(reference).settings()["normalize"] is True


def test_an_extractor_with_custom_code_is_refused(tmp_path: Path) -> None:
    reference = saved("Hubert", tmp_path)
    edit(tmp_path, auto_map={"AutoFeatureExtractor": "own.Own"})
    assert "names custom code (auto_map)" in refusal_message(reference)


@pytest.mark.parametrize(("key", "value"), [("padding_value", 1.0), ("dither", 0.1), ("n_fft", 100_000)])
def test_unsupported_settings_of_whispers_front_end_are_refused(key: str, value: float, tmp_path: Path) -> None:
    reference = saved("Whisper", tmp_path)
    edit(tmp_path, **{key: value})
    assert f"{key} in preprocessor_config.json is {value}" in refusal_message(reference)


def test_a_processors_nested_front_end_is_read_if_there_is_no_other(tmp_path: Path) -> None:
    reference = saved("Hubert", tmp_path)
    path = tmp_path / "preprocessor_config.json"
    nested = {"feature_extractor": json.loads(path.read_text()) | {"do_normalize": False}}
    path.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    upstream = create(reference)
    assert upstream.settings()["normalize"] is False
    assert "processor_config.json" in upstream.origin
