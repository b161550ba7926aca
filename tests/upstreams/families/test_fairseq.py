"""Compares the encoders with s3prl's copies of the authors' models, layer by layer, on single clips."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.upstreams.models import padded, refusal_message, relative_error
from upstreams import create
from upstreams.base import fingerprint
from upstreams.contract.check import check_contract
from upstreams.families.fairseq_keys import DEFAULTS
from upstreams.safety.literal_expressions import literal_value
from upstreams.torchaudio_guard import guard

guard()

CLOSE = 1e-5  # between two implementations in float32, relative to a layer's largest value
LENGTHS = (16_000, 5_077, 3_333, 1_600)  # samples; odd and even numbers of frames
LAYERS = "conv_feature_layers"
SMALL = {
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 4)] * 2",
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 2,
}
LARGE = SMALL | {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
GATED = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 16, "max_distance": 40}


def hubert(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    from s3prl.upstream.hubert import hubert_model as home

    config = home.HubertConfig(label_rate=50, **options)
    return home.HubertModel(config, home.HubertPretrainingConfig(), [range(5), range(7)]), asdict(config)


def wav2vec2(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    from s3prl.upstream.wav2vec2 import wav2vec2_model as home

    config = home.Wav2Vec2Config(quantize_targets=True, latent_vars=4, **options)
    return home.Wav2Vec2Model(config), asdict(config)


def data2vec(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    from s3prl.upstream.data2vec import data2vec_model as home

    config = home.Data2VecAudioConfig(**options)
    return home.Data2VecAudioModel(config), asdict(config)


def wavlm(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    config = WavLMConfig(options)
    return WavLM(config), vars(config)


FAMILIES: dict[str, Callable[..., tuple[nn.Module, dict[str, Any]]]] = {
    "hubert": hubert,
    "wav2vec2": wav2vec2,
    "data2vec": data2vec,
    "wavlm": wavlm,
}


def random_weights_model(family: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model whose weights are all random, and its options."""
    model, config = FAMILIES[family](**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), config


def plain(model: Any, clip: Tensor, normalize: bool = False) -> Tensor:
    """Return the layers (T, L, D) of one clip: the input of each block, and the output of the encoder."""
    states: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: states.append(args[0].transpose(0, 1)))
        for block in model.encoder.layers
    ]
    hooks.append(model.encoder.register_forward_hook(lambda _, __, output: states.append(output[0])))
    with torch.no_grad():
        model.extract_features((F.layer_norm(clip, clip.shape) if normalize else clip)[None], None, mask=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([state[0, : states[-1].shape[1]] for state in states], dim=1)


def newer(model: nn.Module, options: dict[str, Any], normalize: bool) -> dict[str, Any]:
    task = {"_name": "audio_pretraining", "normalize": normalize, "sample_rate": 16_000}
    return {"cfg": {"_name": None, "model": options, "task": task}, "args": None, "model": model.state_dict()}


def composed(model: nn.Module, options: dict[str, Any], normalize: bool) -> dict[str, Any]:
    from omegaconf import OmegaConf

    content = newer(model, options, normalize)
    return content | {"cfg": OmegaConf.create(json.loads(json.dumps(content["cfg"])))}  # fairseq's had no tuples


def older(model: nn.Module, options: dict[str, Any], normalize: bool) -> dict[str, Any]:
    args = options | {"arch": "some_arch", "task": "audio_pretraining", "normalize": normalize}
    return {"args": argparse.Namespace(**args), "model": model.state_dict(), "best_loss": 1.0}


def microsofts(model: nn.Module, options: dict[str, Any], normalize: bool) -> dict[str, Any]:
    return {"cfg": options | {"normalize": normalize}, "model": model.state_dict()}


def s3prls(model: nn.Module, options: dict[str, Any], normalize: bool) -> dict[str, Any]:
    return {"task_cfg": {"normalize": normalize}, "model_cfg": options, "model_weight": model.state_dict()}


LAYOUTS = [newer, composed, older, microsofts, s3prls]


def saved(content: Any, folder: Path) -> str:
    torch.save(content, folder / "model.pt")
    return f"fairseq:{folder / 'model.pt'}"


def agrees(reference: str, model: nn.Module, normalize: bool = False) -> None:
    """Assert that all layers equal those of the authors' model, for single clips and one batch with NaN as padding."""
    upstream = create(reference)
    clips = [0.05 * torch.randn(length) + 0.01 for length in LENGTHS]
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, extra=500))
        for clip, row, count in zip(clips, frames, counts, strict=True):
            expected = plain(model, clip, normalize)
            assert relative_error(upstream(*padded([clip])).frames[0], expected) < CLOSE
            assert relative_error(row[:count], expected) < CLOSE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_of_every_family_gives_the_authors_layers(family: str, layout: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = SMALL | (GATED if family == "wavlm" else {})
    if family == "data2vec":
        options |= {"extractor_mode": "layer_norm", "pos_conv_depth": 3}
    model, config = random_weights_model(family, **options)
    agrees(saved(layout(model, config, True), tmp_path), model, normalize=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_the_large_type_give_the_authors_layers(family: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, config = random_weights_model(family, **LARGE, **(GATED if family == "wavlm" else {}))
    agrees(saved(newer(model, config, False), tmp_path), model)


@pytest.mark.parametrize("trial", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_unpublished_sizes_give_the_authors_layers(family: str, trial: int, tmp_path: Path) -> None:
    chance = random.Random(f"{family} {trial}")
    torch.manual_seed(trial)
    width, heads = chance.choice([8, 12, 24]), chance.choice([1, 2, 4])
    options: dict[str, Any] = {
        "conv_feature_layers": f"[({chance.choice([4, width])}, 7, 6), ({width}, 4, 3)] + [(12, 2, 2)] * 2",
        "encoder_layers": chance.randint(1, 4),
        "encoder_embed_dim": chance.choice([12, 4 * heads]),
        "encoder_ffn_embed_dim": chance.randint(3, 40),
        "encoder_attention_heads": heads,
        "conv_pos": chance.choice([5, 6, 9, 16]),
        "conv_pos_groups": chance.choice([1, 2, 4]),
        "extractor_mode": chance.choice(["default", "layer_norm"]),
        "layer_norm_first": chance.random() < 0.5,
        "conv_bias": chance.random() < 0.5,
        "activation_fn": chance.choice(["gelu", "relu", "tanh", "gelu_accurate"]),
    }
    if family in ("hubert", "wav2vec2", "data2vec"):
        options["required_seq_len_multiple"] = chance.choice([1, 2, 7])
    if family in ("wav2vec2", "data2vec"):
        options["pos_conv_depth"] = chance.choice([1, 2, 4])
    if family == "wavlm":
        options |= GATED | {"num_buckets": chance.choice([8, 32]), "max_distance": chance.choice([20, 800])}
    model, config = random_weights_model(family, **options)
    normalize = chance.random() < 0.5
    agrees(saved(chance.choice(LAYOUTS)(model, config, normalize), tmp_path), model, normalize)


def test_models_of_two_configurations_differ_so_the_tests_above_can_fail(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("hubert", **LARGE)
    for wrong in ({"encoder_attention_heads": 4}, {"layer_norm_first": False}, {"activation_fn": "relu"}):
        with pytest.raises(AssertionError):
            agrees(saved(newer(model, config | wrong, False), tmp_path), model)


def test_quiet_clips_are_normalised_as_fairseq_does_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("wav2vec2", **LARGE)
    upstream, clip = create(saved(newer(model, config, True), tmp_path)), 0.001 * torch.randn(4_000)
    with torch.inference_mode():
        frames = upstream(*padded([clip])).frames[0]
    assert relative_error(frames, plain(model, clip, normalize=True)) < CLOSE
    assert relative_error(frames, plain(model, clip / clip.std())) > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_used_in_single(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("hubert", **SMALL)
    reference = saved(newer(model.to(dtype), config, False), tmp_path)
    agrees(reference, model.float())


def test_either_spelling_of_weight_norm_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("hubert", **SMALL)
    content = newer(model, config, False)
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = content["model"]
    for old, new in names.items():
        state[f"encoder.pos_conv.0.{new}"] = state.pop(f"encoder.pos_conv.0.{old}")
    agrees(saved(content, tmp_path), model)


def test_a_positional_convolution_with_batch_norm_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("hubert", **SMALL)
    same, gelu = list(model.encoder.pos_conv)[1:]
    norm, conv = nn.BatchNorm1d(16), nn.Conv1d(16, 16, 8, padding=4, groups=2)
    for statistics in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        statistics.data.add_(torch.rand(16))
    model.encoder.pos_conv = nn.Sequential(norm, conv, same, gelu).eval()
    agrees(saved(newer(model, config | {"conv_pos_batch_norm": True}, False), tmp_path), model)


def fine_tuned(nested: Any, prefix: str, state: dict[str, Tensor]) -> dict[str, Any]:
    weights = {f"{prefix}w2v_model.{name}": tensor for name, tensor in state.items()}
    return {"model": weights | {f"{prefix}proj.weight": torch.zeros(30, 16)}, "cfg": nested}


def test_the_encoder_of_fine_tuned_models_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("wav2vec2", **SMALL)
    state, task = model.state_dict(), {"normalize": True}
    pretrained = {"model": config, "task": task}
    new = {"model": {"_name": "wav2vec_ctc", "w2v_args": pretrained}, "task": {"_name": "audio_finetuning"}}
    agrees(saved(fine_tuned(new, "w2v_encoder.", state), tmp_path), model, normalize=True)
    old = argparse.Namespace(arch="wav2vec_ctc", normalize=True, w2v_args=argparse.Namespace(**config))
    agrees(saved(fine_tuned(old, "encoder.", state), tmp_path), model, normalize=True)
    lost = {"model": {"_name": "wav2vec_ctc"}, "task": task}
    assert "'w2v_args'" in refusal_message(saved(fine_tuned(lost, "w2v_encoder.", state), tmp_path))


def test_heads_and_teachers_of_pre_training_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("wavlm", **SMALL)  # without relative positions this is UniSpeech-SAT
    content = microsofts(model, config, False)
    for name in ("spk_proj.weight", "layer_norm_for_extract.bias", "label_embs_concat", "quantizer.vars"):
        content["model"][name] = torch.full((3,), float("nan"))
    content["model"]["_ema"] = {"layers.0.fc1.weight": torch.zeros(3)}
    agrees(saved(content, tmp_path), model)


@pytest.mark.parametrize("kind", [SMALL, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_contract_is_kept(family: str, kind: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    extra = GATED if family == "wavlm" else {"pos_conv_depth": 3} if family == "data2vec" else {}
    model, config = random_weights_model(family, **kind, **extra)
    findings = check_contract(create(saved(newer(model, config, True), tmp_path)))
    assert [finding for finding in findings if not finding.ok] == []


def test_a_random_twin_has_the_shape_but_not_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("data2vec", **SMALL, pos_conv_depth=3)
    reference = saved(newer(model, config, True), tmp_path)
    trained, twin = create(reference), create(f"{reference}@random")
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (trained, twin)]
    assert shapes[0] == shapes[1]
    assert trained.settings() == twin.settings()
    assert fingerprint(trained) != fingerprint(twin) == fingerprint(create(f"{reference}@random"))
    assert all(finding.ok for finding in check_contract(twin))


def test_the_origin_of_weights_is_recorded_and_not_part_of_the_fingerprint(tmp_path: Path) -> None:
    import hashlib

    torch.manual_seed(0)
    model, config = random_weights_model("hubert", **SMALL)
    prints = []
    for layout in (newer, older):
        upstream = create(saved(layout(model, config, True), tmp_path))
        content = (tmp_path / "model.pt").read_bytes()
        assert upstream.origin == {"model.pt": hashlib.sha256(content).hexdigest()}
        prints.append(fingerprint(upstream))
    assert prints[0] == prints[1]
    assert fingerprint(create(saved(newer(model, config, False), tmp_path))) not in prints


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return random_weights_model("wav2vec2", **SMALL)


def refusal(content: Any, folder: Path) -> str:
    message = refusal_message(saved(content, folder))
    assert message.startswith(("'", "cfg of", "weights of", "no model", "checkpoint"))
    assert len(message) < 600
    return message


def test_misfitting_weights_are_named(parts: Any, tmp_path: Path) -> None:
    model, config = parts
    content = newer(model, config | {"encoder_ffn_embed_dim": 25}, False)
    state = content["model"]
    del state["encoder.layers.1.fc2.bias"], state["layer_norm.weight"]
    state["encoder.layers.2.fc2.bias"] = torch.zeros(16)
    message = refusal(content, tmp_path)
    assert "missing: encoder.layers.1.fc2.bias, layer_norm.weight;" in message
    assert "of no use: encoder.layers.2.fc2.bias;" in message
    assert "encoder.layers.0.fc1.weight is 24×16, not 25×16" in message


def test_weights_that_are_not_finite_or_no_tensors_are_refused(parts: Any, tmp_path: Path) -> None:
    model, config = parts
    strange = [torch.zeros(16, dtype=torch.int8), torch.zeros(16) > 0, torch.zeros(16) + 0j, [1.0]]
    cases = [(value, "no floating-point numbers at") for value in strange]
    for value, phrase in ((torch.full((16,), float("nan")), "not finite"), *cases):
        content = newer(model, config, False)
        content["model"]["encoder.layers.1.fc2.bias"] = value
        message = refusal(content, tmp_path)
        assert phrase in message
        assert "encoder.layers.1.fc2.bias" in message


@pytest.mark.parametrize(
    ("option", "value", "phrase"),
    [
        ("layer_type", "conformer", "'transformer'"),
        ("activation_fn", "swish", "'gelu'"),
        ("extractor_mode", "batch_norm", "'layer_norm'"),
        ("quantize_input", True, "quantize_input"),
        ("crop_seq_to_multiple", 4, "crop_seq_to_multiple"),
        ("encoder_layers", 10**9, "only"),
        ("encoder_layers", "2", "must be like 12"),
        ("encoder_layers", 0, "must be like 12"),
        ("encoder_embed_dim", 10**15, "no model can be built"),
        ("encoder_attention_heads", 3, "no model can be built"),
        ("conv_pos_groups", 3, "no model can be built"),
        ("conv_feature_layers", "[(8, 10)]", "(channels, kernel, stride)"),
        ("conv_feature_layers", "[(8, 1, 1)] * 65", "65 layers"),
        ("conv_feature_layers", "[(8, 10, 5)] + [(8, 3, 4000)] * 2", "frame per second"),
        ("conv_feature_layers", "[(8, 10, 5)] + [(8, 3, 4)] * 3", "missing: feature_extractor.conv_layers.3.0.weight"),
        ("conv_feature_layers", "[(8, 10, 5)]\0\x1b[2J", "model.pt' has conv_feature_layers = '[(8, 10, 5)]\\x00"),
        ("conv_feature_layers", "9" * 5_000, "has conv_feature_layers = '999"),
        ("relative_position_embedding", True, "gru_rel_pos"),
    ],
)
def test_unsupported_options_are_refused(option: str, value: Any, phrase: str, parts: Any, tmp_path: Path) -> None:
    model, config = parts
    assert phrase in refusal(newer(model, config | {option: value}, False), tmp_path)


def test_code_in_the_place_of_layer_sizes_is_not_run(parts: Any, tmp_path: Path) -> None:
    model, config = parts
    mark = tmp_path / "mark"
    text = f"[(8, 10, 5)] * len([__import__('pathlib').Path({str(mark)!r}).touch()])"
    refusal_message(saved(newer(model, config | {"conv_feature_layers": text}, False), tmp_path))
    assert not mark.exists()


def test_options_that_are_left_out_have_the_authors_values() -> None:
    from s3prl.upstream.hubert.hubert_model import HubertConfig
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config
    from s3prl.upstream.wavlm.WavLM import WavLMConfig

    defaults = [asdict(HubertConfig(label_rate=50)), asdict(Wav2Vec2Config()), vars(WavLMConfig())]
    for name, value in DEFAULTS.items():
        values = [options[name] for options in defaults if name in options]
        assert all(
            literal_value(default) == literal_value(value) if name == LAYERS else default == value for default in values
        ), name
        assert values or name == "conv_pos_batch_norm"  # which is newer than s3prl's copy


@pytest.mark.parametrize("rate", [0, 3_999, 192_001, 10**12, 10**600, True, "16000"])
def test_implausible_sampling_rates_are_refused(rate: Any, parts: Any, tmp_path: Path) -> None:
    model, config = parts
    content = newer(model, config, False)
    content["cfg"]["task"]["sample_rate"] = rate
    message = refusal(content, tmp_path)
    assert "from 4000 to 192000 Hz" in message


def test_weights_that_are_there_twice_are_refused(parts: Any, tmp_path: Path) -> None:
    model, config = parts
    content = newer(model, config, False)
    old = next(key for key in content["model"] if key.endswith("weight_g"))
    content["model"][old.replace("weight_g", "parametrizations.weight.original0")] = content["model"][old] * 2
    assert "twice: encoder.pos_conv.0.weight_g and encoder.pos_conv.0.param" in refusal(content, tmp_path)


def test_names_of_weights_are_escaped_in_messages(parts: Any, tmp_path: Path) -> None:
    model, config = parts
    content = newer(model, config, False)
    content["model"]["junk\x1b[31m\r" + "x" * 50_000] = torch.zeros(1)
    message = refusal(content, tmp_path)
    assert "of no use: junk?[31m x" in message
    assert message.isprintable()
    assert len(message) < 500


def test_invalid_paths_are_refused() -> None:
    for path in ("~nobody-here/x", "x" * 5_000, "x\0y"):
        assert refusal_message(f"fairseq:{path}")


def test_normalisation_is_never_guessed(tmp_path: Path) -> None:
    model, config = random_weights_model("hubert", **LARGE)
    for layout in LAYOUTS:
        assert "normalised" in refusal(layout(model, config, None), tmp_path)


def test_microsofts_base_models_without_the_option_do_not_normalise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = random_weights_model("wavlm", **SMALL, **GATED)
    agrees(
        saved({"cfg": {k: v for k, v in config.items() if k != "normalize"}, "model": model.state_dict()}, tmp_path),
        model,
    )


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("vector_quantizer.vars", ("vq-wav2vec", "s3prl:vq_wav2vec@")),
        ("feature_aggregator.conv_layers.0.1.weight", ("wav2vec 1.0", "s3prl:wav2vec@")),
        ("middle_encoder.layers.0.fc1.weight", ("multi-resolution HuBERT", "s3prl:multires_hubert_base@")),
        ("encoder.w2v_model.feature_extractor_video.resnet.trunk.bias", ("AV-HuBERT",)),
        ("modality_encoders.AUDIO.local_encoder.conv_layers.0.0.weight", ("data2vec 2.0",)),
        ("discriminator.net.0.weight", ("wav2vec-U",)),
        ("decoder.sentence_encoder.embed_tokens.weight", ("RoBERTa",)),
        ("encoder.layers.0.conv_module.depthwise_conv.weight", ("conformer", "hf:")),
        ("encoder.blocks.0.weight", ("encoder.blocks.0.weight", "file.py:function")),
    ],
)
def test_models_of_other_families_are_refused_by_name(name: str, phrases: tuple[str, ...], tmp_path: Path) -> None:
    message = refusal({"model": {name: torch.zeros(1)}, "cfg": {"model": {"_name": "it"}}}, tmp_path)
    assert all(phrase in message for phrase in phrases)


def test_other_files_are_refused_with_a_list_of_their_content(parts: Any, tmp_path: Path) -> None:
    model, _ = parts
    assert "it holds epoch, state_dict" in refusal({"state_dict": model.state_dict(), "epoch": 3}, tmp_path)
    assert "it holds model" in refusal({"model": model.state_dict()}, tmp_path)
    assert "it holds one list" in refusal([torch.zeros(2)], tmp_path)
    assert "hf:FOLDER" in refusal(model.state_dict(), tmp_path)
    assert "no file" in refusal_message(f"fairseq:{tmp_path / 'absent.pt'}")
    assert "has nothing after it" in refusal_message("fairseq:")
