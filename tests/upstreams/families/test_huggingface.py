from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.upstreams.models import (
    FAMILIES,
    SMALL,
    SMALL_AST,
    SMALL_BERT,
    SMALL_WHISPER,
    build,
    mel_extractor,
    padded,
    refusal_message,
    save,
    waveform_extractor,
)
from upstreams import create, entries
from upstreams.base import fingerprint
from upstreams.families.huggingface import random_model
from upstreams.families.named_models import AST, WHISPER, hub_model
from upstreams.families.waveform_encoders import fold_weight_norm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(build("hubert", **SMALL), waveform_extractor(True), tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_pickle(folder: Path) -> dict[str, torch.Tensor]:
    """Replace the safetensors file by an older pytorch_model.bin and return its content."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


def same(one: Any, other: Any) -> bool:
    clip = padded([torch.randn(3_000, generator=torch.Generator().manual_seed(0))])
    with torch.inference_mode():
        return torch.equal(one(*clip).frames, other(*clip).frames)


def heads_of(kind: str) -> list[str]:
    """Return the names of all classes with a head that transformers has for a model type."""
    import transformers

    start = f"{FAMILIES[kind]}For"
    return sorted(name[len(FAMILIES[kind]) :] for name in dir(transformers) if name.startswith(start))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_head_of_the_library_is_left_out(kind: str, tmp_path: Path) -> None:
    sizes = SMALL_BERT if kind == "wav2vec2-bert" else SMALL
    quantizer = {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8, "num_ctc_classes": 5}
    tdnn = {"tdnn_dim": [8, 8], "tdnn_kernel": [3, 3], "tdnn_dilation": [1, 1], "xvector_output_dim": 8}
    extractor = mel_extractor() if kind == "wav2vec2-bert" else waveform_extractor()
    heads = heads_of(kind)
    assert {"ForCTC", "ForSequenceClassification"} <= set(heads)
    for head in heads:
        layer_sum = {"use_weighted_layer_sum": head not in ("ForCTC", "ForPreTraining")}
        model = build(kind, head, **sizes, **quantizer, **tdnn, **layer_sum, vocab_size=12)
        weights = create(save(model, extractor, tmp_path / head)).state_dict()
        fold_weight_norm(model)
        expected = model.base_model.state_dict()
        assert {f"model.{name}" for name in expected} == {name for name in weights if name.startswith("model.")}, head
        assert all(torch.equal(weights[f"model.{name}"], tensor) for name, tensor in expected.items()), head


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-conformer"])
def test_an_adapter_after_the_last_layer_is_left_out(kind: str, tmp_path: Path) -> None:
    model = build(kind, "ForCTC", **SMALL, add_adapter=True, output_hidden_size=10, vocab_size=12)
    upstream = create(save(model, waveform_extractor(), tmp_path))
    assert not any("adapter" in name for name, _ in upstream.named_parameters())
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
    assert "lacks b.bin" in refusal_message(f"hf:{folder}")
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


def test_a_random_twin_needs_no_weights_and_is_always_the_same(folder: Path) -> None:
    trained = create(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    one = create(f"hf:{folder}@random")
    torch.manual_seed(99)
    other = create(f"hf:{folder}@random")
    assert fingerprint(one) == fingerprint(other) != fingerprint(trained)
    assert (one.layers, one.dim, one.hop) == (trained.layers, trained.dim, trained.hop)


@pytest.mark.parametrize("kind", [*FAMILIES, "whisper", "audio-spectrogram-transformer"])
def test_every_architecture_has_a_random_twin_that_encodes(kind: str) -> None:
    others = {"whisper": SMALL_WHISPER, "audio-spectrogram-transformer": SMALL_AST, "wav2vec2-bert": SMALL_BERT}
    bands = 23 if kind == "wav2vec2-bert" else 32
    settings = WHISPER | AST | {"chunk_length": 1, "max_length": 64, "num_mel_bins": bands, "stride": 2}
    upstream = hub_model("nobody/nothing", True, kind, settings, **others.get(kind, SMALL)).eval()
    frames = upstream(*padded([torch.randn(4_000), torch.randn(2_000)])).frames
    assert bool(frames.isfinite().all())
    assert float(frames.detach().std()) > 0.0


SIZES = {  # millions of weights without heads, by name
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
    import upstreams.families.named_models as family

    def counted(config: Any) -> Any:
        with torch.device("meta"):  # counting needs no memory
            return random_model(config)

    monkeypatch.setattr(family, "random_model", counted)
    upstream = getattr(family, name)(random=True)
    millions = sum(tensor.numel() for tensor in upstream.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[name], abs=0.1)
    expected = {"ast": (1_600, 13), "hubert_large": (320, 25), "wavlm_large": (320, 25), "wav2vec2_large": (320, 25)}
    assert (upstream.hop, upstream.layers) == expected.get(name, (320, 7 if name == "whisper_base" else 13))


def test_the_sizes_above_cover_every_hub_name() -> None:
    assert set(SIZES) == {
        name for name, entry in entries().items() if entry.module == "upstreams.families.named_models"
    }


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    assert refusal_message(f"hf:{folder}/nowhere").startswith("no folder")
    (folder / "preprocessor_config.json").rename(folder / "kept.json")
    message = refusal_message(f"hf:{folder}")
    assert message.startswith("no preprocessor_config.json in")
    assert "sampled and normalised" in message
    assert "no preprocessor_config.json" in refusal_message(f"hf:{folder}@random")
    (folder / "kept.json").rename(folder / "preprocessor_config.json")
    (folder / "model.safetensors").unlink()
    assert refusal_message(f"hf:{folder}").startswith("no weights in")
    (folder / "config.json").write_text("{not json")
    assert "config.json of" in refusal_message(f"hf:{folder}")
    (folder / "config.json").unlink()
    assert refusal_message(f"hf:{folder}").startswith("no config.json in")


def test_unsupported_architectures_are_refused_with_a_list_of_supported_ones(folder: Path) -> None:
    edit(folder / "config.json", model_type="bert")
    message = refusal_message(f"hf:{folder}")
    assert "of type 'bert'" in message
    assert "wav2vec2" in message
    edit(folder / "config.json", model_type="hubert", conv_dim=[8])
    assert "does not suit transformers" in refusal_message(f"hf:{folder}")


def test_weights_of_another_architecture_are_refused_by_name(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    assert "missing: encoder.layers.2" in refusal_message(f"hf:{folder}")
    edit(folder / "config.json", num_hidden_layers=1)
    assert "of no use: encoder.layers.1" in refusal_message(f"hf:{folder}")
    edit(folder / "config.json", num_hidden_layers=2, intermediate_size=32)
    assert "of another shape: encoder.layers.0.feed_forward.intermediate_dense" in refusal_message(f"hf:{folder}")


def test_a_checkpoint_of_unknown_weights_only_is_refused(folder: Path) -> None:
    as_pickle(folder)
    torch.save({"something.weight": torch.zeros(3)}, folder / "pytorch_model.bin")
    assert "missing: " in refusal_message(f"hf:{folder}")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    state = as_pickle(folder)
    state["encoder.layer_norm.weight"][0] = float("nan")
    torch.save(state, folder / "pytorch_model.bin")
    assert "not finite: encoder.layer_norm.weight" in refusal_message(f"hf:{folder}")


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(kind: torch.dtype, folder: Path) -> None:
    state = as_pickle(folder)
    name = "encoder.layers.0.attention.k_proj.weight"
    torch.save(state | {name: state[name].to(kind)}, folder / "pytorch_model.bin")
    assert f"no floating-point numbers at {name};" in refusal_message(f"hf:{folder}")


def test_weights_that_are_there_twice_are_refused(folder: Path) -> None:
    state = as_pickle(folder)
    new = next(name for name in state if name.endswith("parametrizations.weight.original0"))
    old = new.replace("parametrizations.weight.original0", "weight_g")
    torch.save(state | {old: 2 * state[new]}, folder / "pytorch_model.bin")
    assert f"twice: {new} and {old}" in refusal_message(f"hf:{folder}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", -2),
        ("num_attention_heads", 0),
        ("hidden_dropout", float("nan")),
        ("max_bucket_distance", 0),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", float("inf")),
        ("layer_norm_eps", -1.0),
        ("conv_stride", [5, 4, 10**9]),
        ("conv_stride", [10**6] * 3),
        ("num_hidden_layers", 10**9),
        ("hidden_size", 10**9),
        ("intermediate_size", 10**11),
        ("conv_kernel", [10, 3, 200_000]),
        ("num_conv_pos_embeddings", 400_000),
        ("conv_dim", [8] * 100_000),
        ("text_config", {"layers": [{"hidden_size": 10**9}]}),
    ],
)
def test_sizes_that_no_model_has_are_refused(key: str, value: Any, folder: Path) -> None:
    edit(folder / "config.json", **{key: value})
    message = refusal_message(f"hf:{folder}")
    assert key in message or "hidden_size" in message


def test_labels_of_heads_are_not_even_counted(folder: Path) -> None:
    expected, start = create(f"hf:{folder}"), time.monotonic()
    edit(folder / "config.json", num_labels=10**9)
    assert same(create(f"hf:{folder}"), expected)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"hidden_size": 16384, "num_hidden_layers": 200, "num_attention_heads": 16},
            "weights; a random twin may have",
        ),
        ({"num_hidden_layers": 1001}, "num_hidden_layers = 1001"),
        ({"model_type": "mimi", "num_quantizers": 10**7}, "more than 100000 modules"),
    ],
)
def test_random_twins_that_are_too_large_are_refused_at_once(
    changes: dict[str, Any], complaint: str, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "hubert"} | changes))
    if "model_type" in changes:
        edit(folder / "preprocessor_config.json", feature_extractor_type="EncodecFeatureExtractor")
    start = time.monotonic()
    assert complaint in refusal_message(f"hf:{folder}@random")
    assert time.monotonic() - start < 20


def test_frames_of_many_seconds_are_refused(folder: Path) -> None:
    save(build("hubert", **{**SMALL, "conv_kernel": [4000, 2, 300], "conv_stride": [500, 2, 2]}), None, folder)
    assert "sees more than 10 s of sound" in refusal_message(f"hf:{folder}")


@pytest.mark.parametrize("kind", ["\x1b[31mevil\x07", "x" * 100_000, ["hubert"], {"a": 1}])
def test_invalid_model_types_are_refused_on_one_short_line(kind: Any, folder: Path) -> None:
    edit(folder / "config.json", model_type=kind)
    message = refusal_message(f"hf:{folder}")
    assert message.isprintable()
    assert len(message) < 600


def test_names_of_weights_are_escaped_in_messages(folder: Path) -> None:
    state = as_pickle(folder)
    junk = {"encoder.\x1b[31m\n" + "x" * 50_000: torch.zeros(2)}
    torch.save(state | junk, folder / "pytorch_model.bin")
    message = refusal_message(f"hf:{folder}")
    assert "of no use: encoder.?[31m x" in message
    assert message.isprintable()
    assert len(message) < 600


def test_untrusted_configuration_is_not_printed(folder: Path) -> None:
    edit(folder / "config.json", use_return_dict="\x1b[2J", rope_parameters={"rope_type": "\x1b[2J"})
    printed = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("transformers")
    logger.addHandler(printed)
    assert refusal_message(f"hf:{folder}").isprintable()
    logger.removeHandler(printed)
    assert printed.stream.getvalue() == ""


def test_a_checkpoint_with_code_is_refused_and_not_run(folder: Path) -> None:
    import os

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "harm"),)

    (folder / "model.safetensors").unlink()
    torch.save({"encoder.layer_norm.weight": Hostile()}, folder / "pytorch_model.bin")
    assert "wants to run" in refusal_message(f"hf:{folder}")
    assert not (folder / "harm").exists()


def test_weights_that_are_neither_the_models_nor_a_known_heads_are_refused_by_name(folder: Path) -> None:
    state = as_pickle(folder)
    bare = {f"hubert.{name}": tensor for name, tensor in state.items()}
    heads = {"lm_head.weight": torch.zeros(3), "layer_weights": torch.zeros(3), "objective.weight": torch.zeros(3)}
    torch.save(bare | heads, folder / "pytorch_model.bin")
    create(f"hf:{folder}")
    for stranger in ("encoder.layers.2.final_layer_norm.weight", "hubert.encoder.layers.2.final_layer_norm.weight"):
        torch.save(bare | heads | {stranger: torch.zeros(16)}, folder / "pytorch_model.bin")
        message = refusal_message(f"hf:{folder}")
        assert "of no use: " in message
        assert stranger.removeprefix("hubert.") in message
    torch.save(state | {"extra_block.weight": torch.zeros(16)}, folder / "pytorch_model.bin")
    assert "of no use: extra_block.weight" in refusal_message(f"hf:{folder}")


def test_a_custom_head_is_refused_with_advice_on_what_to_save(folder: Path) -> None:
    state = as_pickle(folder)
    torch.save(
        {f"hubert.{name}": tensor for name, tensor in state.items()} | {"my_head.weight": torch.zeros(3)},
        folder / "pytorch_model.bin",
    )
    message = refusal_message(f"hf:{folder}")
    assert "of no use: my_head.weight" in message
    assert "save the encoder alone, by model.hubert.save_pretrained(FOLDER)" in message


def test_a_renamed_or_missing_block_is_named(folder: Path) -> None:
    state = as_pickle(folder)
    renamed = {name.replace("layers.1.attention", "layers.1.self_attn"): tensor for name, tensor in state.items()}
    torch.save(renamed, folder / "pytorch_model.bin")
    message = refusal_message(f"hf:{folder}")
    assert "missing: encoder.layers.1.attention" in message
    assert "of no use: encoder.layers.1.self_attn" in message
    torch.save({f"wav2vec2.{name}": tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert "of no use: wav2vec2.encoder" in refusal_message(f"hf:{folder}")


def test_code_that_comes_with_a_model_is_never_run(folder: Path) -> None:
    (folder / "modeling_own.py").write_text(f"import os\nos.mkdir({str(folder / 'harm')!r})\nclass Own: pass\n")
    own = {"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own"}
    expected = create(f"hf:{folder}")
    kernel = {"attn_implementation": "somebody/kernel", "_attn_implementation": "somebody/kernel"}
    edit(folder / "config.json", auto_map=own, **kernel)
    assert same(create(f"hf:{folder}"), expected)
    edit(folder / "config.json", model_type="own")
    assert "whose own code (auto_map) is never run" in refusal_message(f"hf:{folder}")
    assert not (folder / "harm").exists()


def test_quantised_models_and_models_without_blocks_are_refused(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=0)
    assert "num_hidden_layers in its config.json must be >= 1" in refusal_message(f"hf:{folder}")
    edit(folder / "config.json", num_hidden_layers=2, quantization_config={"quant_method": "bitsandbytes"})
    assert "are quantised (quantization_config)" in refusal_message(f"hf:{folder}")


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_safetensors_in_half_precision_load_as_their_values_in_single(kind: str, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    halves = {name: tensor.to(getattr(torch, kind)) for name, tensor in state.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", dtype=kind, torch_dtype=kind)
    weights = create(f"hf:{folder}").state_dict()
    name = "encoder.layers.0.attention.k_proj.weight"
    assert weights[f"model.{name}"].dtype == torch.float32
    assert torch.equal(weights[f"model.{name}"], halves[name].float())


def test_a_configuration_of_a_far_larger_model_than_the_weights_takes_no_memory(folder: Path) -> None:
    whole = json.loads((folder / "config.json").read_text())
    for changes in ({"num_hidden_layers": 500, "hidden_size": 1024}, {"intermediate_size": 10**7, "hidden_size": 64}):
        (folder / "config.json").write_text(json.dumps(whole | changes))
        assert "describes a far larger model than its weights" in refusal_message(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps(whole | {"hidden_act": "nothing"}))
    assert "no model can be built from this config.json" in refusal_message(f"hf:{folder}")


def test_a_random_twin_depends_on_the_seed_only() -> None:
    from upstreams import SEED

    folder = str(Path(__file__).parents[3] / "examples" / "hubert_tiny")
    upstream: Any = create(f"hf:{folder}@random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = transformers.HubertModel(transformers.HubertConfig.from_pretrained(folder))
    for name, weight in model.named_parameters():
        if "pos_conv_embed" not in name:  # its weight norm is folded
            assert torch.equal(weight, upstream.model.get_parameter(name)), name
