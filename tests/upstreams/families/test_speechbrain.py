"""Compares the encoders with SpeechBrain's own inference, on tiny random models in the layout of released ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from tests.upstreams.models import SMALL, build, padded, refusal_message, relative_error, save, waveform_extractor
from upstreams import create
from upstreams.base import fingerprint
from upstreams.contract.check import check_contract
from upstreams.families.speechbrain import FINE_TUNED

CLOSE = 1e-5
SEED = "!apply:torch.manual_seed [!ref <seed>]"
GLOBAL = "mean_var_norm: !ref <mean_var_norm>"
NETWORKS = {
    "ecapa": """!new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <bins>
    activation: !name:torch.nn.LeakyReLU
    channels: [8, 8, 8, 8, 12]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: !ref <emb_dim>
    res2net_scale: 4
    se_channels: 8""",
    "resnet": """!new:speechbrain.lobes.models.ResNet.ResNet
    input_size: !ref <bins>
    channels: [4, 4, 6, 6]
    strides: [1, 2, 2, 2]
    block_sizes: [1, 1, 1, 2]
    device: 'cuda:0'
    lin_neurons: !ref <emb_dim>""",
    "xvector": """!new:speechbrain.lobes.models.Xvector.Xvector
    in_channels: !ref <bins>
    activation: !name:torch.nn.LeakyReLU
    tdnn_blocks: 3
    tdnn_channels: [!ref <channels>, !ref <channels>, 20]
    tdnn_kernel_sizes: (5, 3, 1)
    tdnn_dilations: [1, 3, 1]
    lin_neurons: !ref <channels> * 2 + 2""",
}
PLAN = """
# Pretrain folder (HuggingFace)
pretrained_path: {folder}
seed: 1234
__set_seed: {seed}
device: 'cpu'
n_mels: 24
sample_rate: {rate}
channels: 5
emb_dim: 12
deltas: {deltas}
bins: !ref <n_mels> * {widths}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
    sample_rate: !ref <sample_rate>
    deltas: !ref <deltas>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: {norm}
    std_norm: {scale}
embedding_model: {network}
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 12
    out_neurons: 3
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        classifier: !ref <classifier>
        embedding_model: !ref <embedding_model>
        {more}
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
"""
TUNED = """
wav2vec2_hub: {hub}
pretrained_path: some/where
encoder_dim: 16
wav2vec2: !new:{wrapper}
    source: !ref <wav2vec2_hub>
    output_norm: {norm}
    freeze: True
    pretrain: False
    save_path: wav2vec2_checkpoints
avg_pool: !new:speechbrain.nnet.pooling.StatisticsPooling
    return_std: False
output_mlp: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <encoder_dim>
    n_neurons: 4
model: !new:torch.nn.ModuleList
    - [!ref <output_mlp>]
modules:
    wav2vec2: !ref <wav2vec2>
    output_mlp: !ref <output_mlp>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        wav2vec2: !ref <wav2vec2>
        model: !ref <model>
        label_encoder: !ref <label_encoder>
    paths:
        wav2vec2: !ref <pretrained_path>/wav2vec2.ckpt
        model: !ref <pretrained_path>/model.ckpt
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""
CASES = [  # network, normalisation, whether it scales by the deviation, sampling rate, whether there are deltas
    ("ecapa", "sentence", False, 16_000, False),
    ("resnet", "sentence", True, 8_000, False),
    ("xvector", "sentence", False, 16_000, True),
    ("ecapa", "global", True, 8_000, True),
    ("xvector", "global", False, 16_000, False),
]


def plan(folder: Path, network: str = "ecapa", norm: str = "sentence", scale: bool = False, rate: int = 16_000) -> str:
    more = GLOBAL if norm == "global" else ""
    values = {"norm": norm, "scale": scale, "rate": rate, "more": more, "deltas": False, "widths": 1, "seed": SEED}
    return PLAN.format(folder=folder, network=NETWORKS[network], **values)


def shaken(module: Any) -> Any:
    """Add noise to all weights of a module, so that none is exactly zero or one, and return it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return module.eval()


def publish(folder: Path, text: str) -> Path:
    """Write a folder as SpeechBrain publishes a model: hyperparams.yaml, and checkpoints of its objects."""
    from hyperpyyaml import load_hyperpyyaml

    torch.manual_seed(0)
    objects = load_hyperpyyaml(text)
    bins = objects["bins"]
    torch.save(shaken(objects["embedding_model"]).state_dict(), folder / "embedding_model.ckpt")
    torch.save(objects["classifier"].state_dict(), folder / "classifier.ckpt")
    statistics = {"count": 3, "glob_mean": torch.randn(bins) - 20.0, "glob_std": 5.0 + torch.rand(bins)}
    torch.save(statistics | {"spk_dict_mean": {}, "spk_dict_std": {}}, folder / "mean_var_norm.ckpt")
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return folder


def speechbrain_interface(folder: Path, scratch: Path) -> Any:
    """Return SpeechBrain's own interface, with the random offset of its statistics pooling at its expected value."""
    from speechbrain.inference.classifiers import EncoderClassifier

    interface = EncoderClassifier.from_hparams(source=str(folder), savedir=str(scratch))
    for module in interface.modules():
        if hasattr(module, "_get_gauss_noise"):
            module._get_gauss_noise = lambda shape, device: torch.full(shape, 5e-5)
    return interface


def sound(seconds: float, rate: int = 16_000) -> Tensor:
    return 0.05 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(round(1000 * seconds)))


def faults(upstream: Any) -> list[str]:
    return [finding.detail for finding in check_contract(upstream) if not finding.ok]


def edited(folder: Path, old: str, new: str) -> str:
    """Replace text in a folder's hyperparams.yaml and return the reference of the folder."""
    path = folder / "hyperparams.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return f"speechbrain:{folder}"


@pytest.fixture(scope="module")
def ecapa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published ECAPA-TDNN, which tests must not modify."""
    folder = tmp_path_factory.mktemp("ecapa")
    return publish(folder, plan(folder))


@pytest.fixture
def copy(ecapa: Path, tmp_path: Path) -> Path:
    for path in ecapa.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(("network", "norm", "scale", "rate", "deltas"), CASES)
def test_embeddings_are_those_of_speechbrains_own_inference(
    network: str, norm: str, scale: bool, rate: int, deltas: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    text = plan(folder, network, norm, scale, rate)
    if deltas:
        text = text.replace("deltas: False", "deltas: True").replace("<n_mels> * 1", "<n_mels> * 3")
    upstream = create(f"speechbrain:{publish(folder, text)}")
    clips = [sound(seconds, rate) for seconds in (0.7, 1.31, 0.7)]
    with torch.inference_mode():
        embeddings = upstream.summarize(*padded(clips, 999))
        interface = speechbrain_interface(folder, tmp_path / "collected")
        for clip, embedding in zip(clips, embeddings, strict=True):
            expected = interface.encode_batch(clip[None]).reshape(1, -1)
            assert float((embedding - expected).abs().max() / expected.abs().max()) < CLOSE
    assert upstream.sample_rate == rate
    assert faults(upstream) == []


@pytest.mark.parametrize(("network", "pooling"), [("ecapa", "asp"), ("resnet", "attention"), ("xvector", "blocks.9")])
def test_frames_are_what_pooling_takes_in_speechbrains_own_inference(
    network: str, pooling: str, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    upstream = create(f"speechbrain:{publish(folder, plan(folder, network))}")
    interface, seen = speechbrain_interface(folder, tmp_path / "collected"), []
    interface.mods.embedding_model.get_submodule(pooling).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    clip = sound(1.28)
    with torch.inference_mode():
        interface.encode_batch(clip[None])
        frames, counts = upstream(*padded([clip, sound(0.3)]))
    expected = seen[0][0] if network == "xvector" else seen[0][0].T
    assert counts.tolist() == ([16, 4] if network == "resnet" else [128, 30])
    assert len(expected) == counts[0] + 1  # the centred spectrogram has a frame at the very end
    assert relative_error(frames[0], expected[:-1, None]) < CLOSE


def test_statistics_pooling_adds_nothing_at_random(tmp_path: Path) -> None:
    upstream = create(f"speechbrain:{publish(tmp_path, plan(tmp_path, 'xvector'))}")
    clip = padded([sound(0.5)])
    assert torch.equal(upstream.summarize(*clip), upstream.summarize(*clip))


def test_statistics_of_training_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    reference = f"speechbrain:{publish(tmp_path, plan(tmp_path, norm='global'))}"
    before = fingerprint(create(reference))
    statistics = torch.load(tmp_path / "mean_var_norm.ckpt", weights_only=True)
    torch.save(statistics | {"glob_mean": statistics["glob_mean"] + 1.0}, tmp_path / "mean_var_norm.ckpt")
    assert fingerprint(create(reference)) != before


def test_arguments_that_do_not_change_weights_change_the_fingerprint(copy: Path) -> None:
    before = fingerprint(create(f"speechbrain:{copy}"))
    assert fingerprint(create(edited(copy, "dilations: [1, 2, 3, 4, 1]", "dilations: [1, 2, 3, 5, 1]"))) != before


def test_a_random_twin_needs_no_weights_and_is_the_same_each_time(copy: Path) -> None:
    trained = create(f"speechbrain:{copy}")
    (copy / "embedding_model.ckpt").unlink()
    twin = create(f"speechbrain:{copy}@random")
    assert fingerprint(twin) == fingerprint(create(f"speechbrain:{copy}@random")) != fingerprint(trained)
    assert twin.settings() == trained.settings()
    assert faults(twin) == []


def test_the_digests_of_files_read_are_recorded(ecapa: Path) -> None:
    names = ("hyperparams.yaml", "embedding_model.ckpt")
    digests = {name: hashlib.sha256((ecapa / name).read_bytes()).hexdigest() for name in names}
    assert create(f"speechbrain:{ecapa}").origin == digests


def test_a_repository_is_read_from_the_cache_at_its_revision(
    ecapa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    repository = tmp_path / "models--somebody--speaker"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / commit).symlink_to(ecapa)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    upstream = create("speechbrain:somebody/speaker@v1")
    assert fingerprint(upstream) == fingerprint(create(f"speechbrain:{ecapa}"))
    assert upstream.origin["revision"] == commit


def test_files_are_found_by_the_names_that_speechbrain_collects_them_under(copy: Path) -> None:
    edited(copy, "<pretrained_path>/embedding_model.ckpt", "<pretrained_path>/epoch_12/network.ckpt")
    create(f"speechbrain:{copy}")
    (copy / "embedding_model.ckpt").rename(copy / "network.ckpt")
    create(f"speechbrain:{copy}")


def test_parts_may_be_yaml_aliases_as_in_files_that_were_resolved_before(copy: Path) -> None:
    before = fingerprint(create(f"speechbrain:{copy}"))
    for name in ("compute_features", "mean_var_norm", "embedding_model"):
        edited(copy, f"\n{name}: !new", f"\n{name}: &{name} !new")
        edited(copy, f"{name}: !ref <{name}>", f"{name}: *{name}")
    assert fingerprint(create(f"speechbrain:{copy}")) == before


# Wrappers of self-supervised models


def tune(folder: Path, base: Path, kind: str, normalize: bool, wrapper: str, **config: Any) -> Any:
    """Save a tiny model in `base`, fine-tune SpeechBrain's wrapper of it and publish the result in `folder`."""
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    torch.manual_seed(0)
    save(build(kind, **SMALL, **config), waveform_extractor(normalize), base)
    wrapped = shaken(Wav2Vec2(str(base), str(folder / "none"), output_norm=normalize, freeze=True))
    torch.save(wrapped.state_dict(), folder / "wav2vec2.ckpt")
    text = TUNED.format(hub=base, norm=normalize, wrapper=wrapper)
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return wrapped


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of a fine-tuned model and of its base model."""
    folder, base = tmp_path / "tuned", tmp_path / "base"
    folder.mkdir()
    return folder, base


@pytest.mark.parametrize(
    ("kind", "normalize", "wrapper"),
    [("wav2vec2", True, FINE_TUNED[0]), ("hubert", False, FINE_TUNED[1]), ("wavlm", True, FINE_TUNED[-1])],
)
def test_the_last_layer_is_the_output_of_speechbrains_wrapper(
    kind: str, normalize: bool, wrapper: str, folders: tuple[Path, Path]
) -> None:
    large: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if normalize else {}
    wrapped = tune(*folders, kind, normalize, wrapper, **large)
    upstream = create(f"speechbrain:{folders[0]}")
    clips = [0.05 * sound(0.4), sound(0.9)]  # one is so quiet that the epsilon of the normalisation matters
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, 99))
        for clip, row, count in zip(clips, frames, counts, strict=True):
            assert relative_error(row[:count, -1:], wrapped(clip[None])[0, :, None]) < CLOSE
    assert faults(upstream) == []
    names = {"hyperparams.yaml", "wav2vec2.ckpt", "config.json", "preprocessor_config.json"}
    assert set(upstream.origin) == names


def test_outputs_are_normalised_over_time_and_channels_in_every_layer(folders: tuple[Path, Path]) -> None:
    tune(*folders, "hubert", True, FINE_TUNED[0])
    upstream = create(f"speechbrain:{folders[0]}")
    frames, counts = upstream(*padded([sound(0.4), sound(0.9)]))
    for row, count in zip(frames, counts, strict=True):
        assert torch.allclose(row[:count].mean((0, 2)), torch.zeros(upstream.layers), atol=1e-5)
        assert torch.allclose(row[:count].var((0, 2), unbiased=False), torch.ones(upstream.layers), atol=1e-3)


def test_the_architecture_is_found_beside_the_weights_too(folders: tuple[Path, Path]) -> None:
    folder, base = folders
    tune(folder, base, "hubert", True, FINE_TUNED[0])
    before = fingerprint(create(f"speechbrain:{folder}"))
    for place in (folder / "wav2vec2_checkpoints", folder):
        place.mkdir(exist_ok=True)
        for name in ("config.json", "preprocessor_config.json"):
            (place / name).write_bytes((base / name).read_bytes())
        edited(folder, f"wav2vec2_hub: {base}", "wav2vec2_hub: nobody/nothing")
        assert fingerprint(create(f"speechbrain:{folder}")) == before
        edited(folder, "wav2vec2_hub: nobody/nothing", f"wav2vec2_hub: {base}")
        (place / "config.json").unlink()


def test_an_architecture_far_larger_than_its_weights_is_refused_at_once(folders: tuple[Path, Path]) -> None:
    tune(*folders, "hubert", False, FINE_TUNED[1])
    path = folders[1] / "config.json"
    huge = {"hidden_size": 16384, "num_hidden_layers": 200, "intermediate_size": 65536}
    path.write_text(json.dumps(json.loads(path.read_text()) | huge))
    assert "a far larger model than its weights" in refusal_message(f"speechbrain:{folders[0]}")
    assert "a model of 6.4e+11 weights" in refusal_message(f"speechbrain:{folders[0]}@random")


def test_random_networks_that_are_too_large_are_refused(copy: Path) -> None:
    reference = edited(copy, "channels: [8, 8, 8, 8, 12]", "channels: [200000, 200000, 200000, 200000, 200000]")
    assert "more than 5e+09 weights" in refusal_message(f"{reference}@random")


def test_weights_of_older_releases_and_of_pre_training_are_loaded(folders: tuple[Path, Path]) -> None:
    folder, base = folders
    tune(folder, base, "wav2vec2", True, FINE_TUNED[0])
    before = fingerprint(create(f"speechbrain:{folder}"))
    state = torch.load(folder / "wav2vec2.ckpt", weights_only=True)
    for old, new in (
        ("weight_g", "parametrizations.weight.original0"),
        ("weight_v", "parametrizations.weight.original1"),
    ):
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    torch.save(state, folder / "wav2vec2.ckpt")
    assert fingerprint(create(f"speechbrain:{folder}")) == before
    nested = {name.replace("model.", "model.wav2vec2.", 1): tensor for name, tensor in state.items()}
    torch.save(nested | {"model.quantizer.codevectors": torch.ones(2)}, folder / "wav2vec2.ckpt")
    assert fingerprint(create(f"speechbrain:{folder}")) == before


def test_a_model_without_a_configuration_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, base = folders
    tune(folder, base, "hubert", True, FINE_TUNED[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reference = edited(folder, f"wav2vec2_hub: {base}", "wav2vec2_hub: nobody/nothing")
    assert "put its config.json and preprocessor_config.json beside" in refusal_message(reference)


# Broken, foreign and hostile files


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state | {"fc.conv.extra": torch.ones(1)}, "of no use: fc.conv.extra"),
        (lambda state: {name: state[name] for name in state if name != "fc.conv.bias"}, "missing: fc.conv.bias"),
        (lambda state: state | {"fc.conv.bias": torch.ones(99)}, "of another shape: fc.conv.bias"),
        (lambda state: state | {"fc.conv.bias": torch.full((12,), torch.nan)}, "not finite: fc.conv.bias"),
        (lambda state: state | {"fc.conv.bias": torch.ones(12, dtype=torch.int64)}, "numbers at fc.conv.bias"),
        (lambda state: state | {"fc.conv.bias": torch.ones(12) > 0}, "numbers at fc.conv.bias"),
        (lambda state: state | {"fc.conv.bias": torch.ones(12) + 0j}, "numbers at fc.conv.bias"),
        (lambda state: state | {"evil\x1b[31m\n": torch.ones(1)}, "of no use: evil?[31m"),
    ],
)
def test_misfitting_weights_are_named(change: Any, complaint: str, copy: Path) -> None:
    path = copy / "embedding_model.ckpt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    assert complaint in refusal_message(f"speechbrain:{copy}")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("features.Fbank", "features.MFCC", "uses speechbrain.lobes.features.MFCC as compute_features"),
        ("!new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN", "!new:my.Net", "embedding_model of my.Net"),
        ("!name:torch.nn.LeakyReLU", "!name:os.system", "gives !name:os.system as activation"),
        ("norm_type: sentence", "norm_type: batch", "normalises by batch"),
        ("norm_type: sentence", "norm_type: global", "loads no weights into its speechbrain.processing"),
        ("n_mels: !ref <n_mels>", "n_mels: !ref <nothing>", "refers to <nothing>, which it does not have"),
        ("n_mels: 24", "n_mels: 999999999", "n_mels that is neither a number up to 1000"),
        (
            "n_mels: !ref <n_mels>",
            "n_mels: !ref <n_mels>\n    n_fft: 200000",
            "n_fft that is neither a number up to 16384",
        ),
        ("n_mels: 24", "n_mels: !ref <bins>", "in a circle"),
        ("    sample_rate: !ref <sample_rate>", "", "says sample_rate 8000, but its Fbank takes 16000"),
        ("    sample_rate: !ref <sample_rate>", "    sample_rate: 8000\n    requires_grad: True", "requires_grad"),
        ("    res2net_scale: 4", "    res2net: 4", "got an unexpected keyword argument 'res2net'"),
        ("    channels: [8, 8, 8, 8, 12]", "    channels: [90000, 8, 8, 8, 12]", "of another shape"),
        ("dilations: [1, 2, 3, 4, 1]", "dilations: [1, 200000, 3, 4, 1]", "takes clips of"),
        ("pretrainer:", "checkpointer:", "no pretrainer with loadables"),
        ("n_mels: 24", "n_mels: [24", "is broken"),
        ("n_mels: 24", "<<: {x: 1}", "merges mappings with <<"),
        ("n_mels: 24", f"n_mels: 0x{'f' * 9_000}", "an endless number"),
        ("n_mels: !ref <n_mels>", "n_mels: !ref <n_mels>\n    f_min: 5000", "f_min must be at least 0 and below f_max"),
        ("n_mels: !ref <n_mels>", "n_mels: !ref <n_mels>\n    f_min: 900\n    f_max: 800", "below f_max"),
        ("n_mels: !ref <n_mels>", "n_mels: !ref <n_mels>\n    f_min: .nan", "below f_max"),
        ("n_mels: !ref <n_mels>", "n_mels: !ref <n_mels>\n    filter_shape: square", "filter_shape must be one of"),
        ("norm_type: sentence", "norm_type: sentence\n    mean_norm: 'no'", "mean_norm must be true or false"),
        ("features.Fbank", "features.%1B%5B2J", "uses speechbrain.lobes.features.?[2J as compute_features"),
    ],
)
def test_unsupported_files_are_refused_in_one_sentence(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    text = plan(tmp_path, rate=8_000)
    assert old in text
    (tmp_path / "hyperparams.yaml").write_text(text.replace(old, new), encoding="utf-8")
    torch.save(
        {"fc.conv.bias": torch.ones(12), "blocks.0.norm.norm.bias": torch.ones(8)}, tmp_path / "embedding_model.ckpt"
    )
    assert complaint in refusal_message(f"speechbrain:{tmp_path}" + ("@random" if "dilations" in old else ""))


def test_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "embedding_model.ckpt").unlink()
    assert "lacks embedding_model.ckpt" in refusal_message(f"speechbrain:{copy}")
    (copy / "hyperparams.yaml").unlink()
    assert "no hyperparams.yaml in" in refusal_message(f"speechbrain:{copy}")
    assert "speechbrain: takes a folder" in refusal_message(f"speechbrain:{tmp_path / 'nothing'}")


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("name", ["embedding_model.ckpt", "mean_var_norm.ckpt"])
def test_checkpoints_that_are_programs_are_refused(name: str, tmp_path: Path) -> None:
    publish(tmp_path, plan(tmp_path, norm="global"))
    torch.save({"glob_mean": Evil()}, tmp_path / name)
    assert "system" in refusal_message(f"speechbrain:{tmp_path}")


HOSTILE = {
    "apply": "__set_seed: !apply:os.system ['touch {canary}']",
    "applyref": "x: !applyref:os.system\n    command: touch {canary}",
    "new": "x: !new:subprocess.Popen [['touch', '{canary}']]",
    "new by name": "x: !new:subprocess.Popen\n    args: ['touch', '{canary}']",
    "name": "x: !name:os.system ['touch {canary}']",
    "module": "x: !module:evil",
    "python object": "x: !!python/object/apply:os.system ['touch {canary}']",
    "python new": "x: !!python/object/new:subprocess.Popen [['touch', '{canary}']]",
    "python name": "x: !!python/name:os.system ''",
    "python module": "x: !!python/module:evil ''",
    "include": "x: !include:evil.yaml",
    "key": "? !!python/object/apply:os.system ['touch {canary}']\n: 1",
    "text": "n_mels: !ref <seed> * __import__('os').system('touch {canary}')",
    "laughs": "a: &a [1, 1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1 or ''}, *a{n - 1 or ''}]" for n in range(1, 60)),
    "references": "r0: x\n"
    + "\n".join(f"r{n}: !ref <r{n - 1}><r{n - 1}>" for n in range(1, 60))
    + "\nn_mels: !ref <r59>",
    "powers": "n_mels: !ref 9 ** 9 ** 9 ** 9",
    "depth": "x: " + "[" * 5_000,
    "size": "x: '" + "y" * 300_000 + "'",
    "cycle": "x: &x [*x]",
    "digits": "n_mels: " + "9" * 10_000,
    "other": "\x00\x01",
}
REFUSED = (
    "text",
    "references",
    "powers",
    "depth",
    "size",
    "digits",
    "other",
)  # values under the other names are not used


def test_importing_speechbrain_leaves_torchs_precision_alone(ecapa: Path) -> None:
    code = f"""import torch
from upstreams import create
create("speechbrain:{ecapa}")
assert not torch.backends.cuda.matmul.allow_tf32
assert torch._C._jit_set_profiling_executor(True)"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


PLACES = [(name, "entry") for name in HOSTILE]
PLACES += [
    (name, place)
    for name, text in HOSTILE.items()
    for place in ("compute_features", "embedding_model", "pretrainer")
    if text.startswith("x: !")
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_nothing_that_a_file_names_is_run(
    name: str, place: str, copy: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path_factory.mktemp("canary") / "sang"
    for evil, text in (
        ("evil.py", f"open({str(canary)!r}, 'w')"),
        ("evil.yaml", HOSTILE["apply"]),
        ("custom.py", "1/0"),
    ):
        (copy / evil).write_text(text.format(canary=canary))
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    text = HOSTILE[name].replace("{canary}", str(canary))
    content = (copy / "hyperparams.yaml").read_text(encoding="utf-8")
    if place == "entry":
        content += text + "\n"
    else:
        content = content.replace(f"\n{place}:", f"\n{text.replace('x:', f'{place}:', 1)}\nformerly:")
    (copy / "hyperparams.yaml").write_text(content, encoding="utf-8")
    if place == "entry" and name not in REFUSED:
        create(f"speechbrain:{copy}")
    else:
        assert len(refusal_message(f"speechbrain:{copy}")) < 700
    assert not canary.exists()
    assert "evil" not in sys.modules
