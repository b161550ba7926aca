from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.upstreams.models import KINDS, SMALL, SMALL_AST, SMALL_WHISPER, build, padded, save, told, waveform_extractor
from upstreams import create, entries
from upstreams.base import fingerprint
from upstreams.huggingface import named, untrained
from upstreams.waveform_encoders import fold_weight_norm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(build("hubert", **SMALL), waveform_extractor(True), tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_pickle(folder: Path) -> dict[str, torch.Tensor]:
    """Replace the safetensors file by an older pytorch_model.bin; its content."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


def same(one: Any, other: Any) -> bool:
    clip = padded([torch.randn(3_000, generator=torch.Generator().manual_seed(0))])
    with torch.inference_mode():
        return torch.equal(one(*clip).frames, other(*clip).frames)


@pytest.mark.parametrize("head", ["ForCTC", "ForSequenceClassification"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio"])
def test_heads_of_checkpoints_are_left_out(kind: str, head: str, tmp_path: Path) -> None:
    model = build(kind, head, **SMALL, vocab_size=12)
    upstream = create(save(model, waveform_extractor(), tmp_path))
    weights = upstream.state_dict()
    fold_weight_norm(model)
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(weights[f"model.{name}"], tensor), name
    assert len(weights) == len(model.base_model.state_dict())


@pytest.mark.parametrize(
    ("kind", "head"), [("wav2vec2", "ForPreTraining"), ("wavlm", "ForXVector"), ("unispeech-sat", "ForPreTraining")]
)
def test_quantizers_and_speaker_heads_are_left_out_too(kind: str, head: str, tmp_path: Path) -> None:
    quantizer = {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8}
    tdnn = {"tdnn_dim": [8, 8], "tdnn_kernel": [3, 3], "tdnn_dilation": [1, 1], "xvector_output_dim": 8}
    model = build(kind, head, **SMALL, **quantizer, **tdnn)
    upstream = create(save(model, waveform_extractor(), tmp_path))
    assert torch.equal(upstream.model.encoder.layer_norm.weight, model.base_model.encoder.layer_norm.weight)


def test_older_checkpoints_load_with_their_old_names_of_weights(folder: Path) -> None:
    expected = create(f"hf:{folder}")
    state = as_pickle(folder)
    assert same(create(f"hf:{folder}"), expected)
    prefix = "encoder.pos_conv_embed.conv."
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        state[prefix + old] = state.pop(prefix + new)
    torch.save({f"hubert.{name}": tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert same(create(f"hf:{folder}"), expected)


def test_checkpoints_in_several_files_and_in_half_precision_load(folder: Path) -> None:
    expected, state = create(f"hf:{folder}"), as_pickle(folder)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same(create(f"hf:{folder}"), expected)
    (folder / "b.bin").rename(folder / "elsewhere.bin")
    assert "lacks b.bin" in told(f"hf:{folder}")
    (folder / "pytorch_model.bin.index.json").unlink()
    torch.save({name: tensor.half() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    upstream = create(f"hf:{folder}")
    assert all(tensor.dtype == torch.float32 for tensor in upstream.parameters())


def test_the_fingerprint_is_that_of_the_weights_and_settings_not_of_the_folder(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(create(f"hf:{folder}"))
    assert fingerprint(create(f"hf:{folder}/")) == before
    edit(folder / "preprocessor_config.json", do_normalize=False)
    raw = fingerprint(create(f"hf:{folder}"))
    edit(folder / "config.json", hidden_act="relu")
    assert len({before, raw, fingerprint(create(f"hf:{folder}"))}) == 3


def test_sampling_rate_and_normalisation_come_from_the_checkpoint(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", sampling_rate=8_000, do_normalize=False)
    upstream = create(f"hf:{folder}")
    assert upstream.sample_rate == 8_000
    assert upstream.settings()["normalize"] is False


def test_a_front_end_with_values_of_the_wrong_kind_is_told(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", sampling_rate=None)
    assert "value of the wrong kind" in told(f"hf:{folder}")


def test_a_processors_nested_front_end_is_read_where_there_is_no_other(folder: Path) -> None:
    nested = {
        "feature_extractor": json.loads((folder / "preprocessor_config.json").read_text()) | {"do_normalize": False}
    }
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert create(f"hf:{folder}").settings()["normalize"] is False


def test_a_random_twin_needs_no_weights_and_is_always_the_same(folder: Path) -> None:
    trained = create(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    one = create(f"hf:{folder}@random")
    torch.manual_seed(99)
    other = create(f"hf:{folder}@random")
    assert fingerprint(one) == fingerprint(other) != fingerprint(trained)
    assert (one.layers, one.dim, one.hop) == (trained.layers, trained.dim, trained.hop)


@pytest.mark.parametrize("kind", [*KINDS, "whisper", "audio-spectrogram-transformer"])
def test_every_architecture_has_a_random_twin_that_encodes(kind: str) -> None:
    sizes = {"whisper": SMALL_WHISPER, "audio-spectrogram-transformer": SMALL_AST}.get(kind, SMALL)
    bands = {"chunk_length": 1, "max_length": 64, "num_mel_bins": 32}
    upstream = named("nobody/nothing", True, kind, bands, **sizes).eval()
    frames = upstream(*padded([torch.randn(4_000), torch.randn(2_000)])).frames
    assert bool(frames.isfinite().all())
    assert float(frames.detach().std()) > 0.0


SIZES = {  # millions of weights, without heads
    "ast": 86.2,
    "data2vec_audio_base": 93.2,
    "hubert_base": 94.4,
    "hubert_large": 315.4,
    "unispeech_sat_base": 94.4,
    "wav2vec2_base": 94.4,
    "wav2vec2_large": 315.4,
    "wavlm_base": 94.4,
    "wavlm_base_plus": 94.4,
    "wavlm_large": 315.5,
    "whisper_base": 20.6,
}


@pytest.mark.parametrize("name", SIZES)
def test_twins_of_hub_models_have_their_size_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import upstreams.huggingface as family

    def counted(config: Any) -> Any:
        with torch.device("meta"):  # counting needs no memory
            return untrained(config)

    monkeypatch.setattr(family, "untrained", counted)
    upstream = getattr(family, name)(random=True)
    millions = sum(tensor.numel() for tensor in upstream.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[name], abs=0.1)
    expected = {"ast": (1_600, 13), "hubert_large": (320, 25), "wavlm_large": (320, 25), "wav2vec2_large": (320, 25)}
    assert (upstream.hop, upstream.layers) == expected.get(name, (320, 7 if name == "whisper_base" else 13))


def test_the_sizes_above_cover_every_hub_name() -> None:
    assert set(SIZES) == {name for name, entry in entries().items() if entry.module == "upstreams.huggingface"}


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    assert told(f"hf:{folder}/nowhere").startswith("no folder")
    (folder / "preprocessor_config.json").rename(folder / "kept.json")
    message = told(f"hf:{folder}")
    assert message.startswith("no preprocessor_config.json in")
    assert "sampled and normalised" in message
    assert "no preprocessor_config.json" in told(f"hf:{folder}@random")
    (folder / "kept.json").rename(folder / "preprocessor_config.json")
    (folder / "model.safetensors").unlink()
    assert told(f"hf:{folder}").startswith("no weights in")
    (folder / "config.json").write_text("{not json")
    assert "config.json of" in told(f"hf:{folder}")
    (folder / "config.json").unlink()
    assert told(f"hf:{folder}").startswith("no config.json in")


def test_architectures_that_are_not_known_are_refused_with_the_known_ones(folder: Path) -> None:
    edit(folder / "config.json", model_type="bert")
    message = told(f"hf:{folder}")
    assert "of type 'bert'" in message
    assert "wav2vec2" in message
    edit(folder / "config.json", model_type="hubert", conv_dim=[8])
    assert "does not suit transformers" in told(f"hf:{folder}")


def test_weights_of_another_architecture_are_refused_by_name(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    assert "missing: encoder.layers.2" in told(f"hf:{folder}")
    edit(folder / "config.json", num_hidden_layers=1)
    assert "of no use: encoder.layers.1" in told(f"hf:{folder}")
    edit(folder / "config.json", num_hidden_layers=2, intermediate_size=32)
    assert "of another shape: encoder.layers.0.feed_forward.intermediate_dense" in told(f"hf:{folder}")


def test_a_checkpoint_of_nothing_but_strangers_is_refused(folder: Path) -> None:
    as_pickle(folder)
    torch.save({"something.weight": torch.zeros(3)}, folder / "pytorch_model.bin")
    assert "missing: " in told(f"hf:{folder}")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    state = as_pickle(folder)
    state["encoder.layer_norm.weight"][0] = float("nan")
    torch.save(state, folder / "pytorch_model.bin")
    assert "not finite: encoder.layer_norm.weight" in told(f"hf:{folder}")


def test_a_checkpoint_that_wants_to_run_code_is_refused_and_runs_nothing(folder: Path) -> None:
    import os

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "harm"),)

    (folder / "model.safetensors").unlink()
    torch.save({"encoder.layer_norm.weight": Hostile()}, folder / "pytorch_model.bin")
    assert "wants to run" in told(f"hf:{folder}")
    assert not (folder / "harm").exists()


def test_a_model_that_is_nowhere_is_told_within_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = told("hf:nobody/has-ever-published-this")
    assert "not in the Hugging Face cache, and the hub is out of reach" in message
    assert told("hf:not a hub id").startswith("'not a hub id' is neither a folder nor a hub id")
    assert "give the folder" in told("hubert_base")


def test_a_cached_model_loads_by_its_hub_id_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    expected = create(f"hf:{folder}")
    as_pickle(folder)
    cache = folder / "cache"
    snapshot = cache / "models--somebody--hubert" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "pytorch_model.bin"):
        (folder / name).rename(snapshot / name)
    refs = cache / "models--somebody--hubert" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert same(create("hf:somebody/hubert"), expected)
