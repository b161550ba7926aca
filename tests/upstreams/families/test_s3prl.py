"""Compares upstreams of s3prl with its own Featurizers on the same checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.upstreams import s3prl_spectral, s3prl_speech
from tests.upstreams.s3prl_speech import CHECKPOINTS, encoded, sound
from upstreams import create
from upstreams.base import Upstream, UpstreamError, fingerprint
from upstreams.contract.check import check_contract
from upstreams.contract.probe_signals import relative_difference
from upstreams.families import s3prl_bridge
from upstreams.families.s3prl_entries import s3prl_entries

SECONDS = (0.03, 0.05, 0.7431, 2.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("s3prl")

    @cache
    def checkpoint_of(name: str) -> Path:
        torch.manual_seed(0)
        return CHECKPOINTS[name](folder / f"{name}.pt")

    return checkpoint_of


@pytest.fixture(scope="module")
def upstream(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda name: create(f"s3prl:{name}@{checkpoint(name)}"))


def s3prls_own(name: str, path: Path) -> Any:
    """Build s3prl's S3PRLUpstream with its checkpoint given by path, or in place of its download."""
    from s3prl.nn import S3PRLUpstream

    checkpoint = path if s3prl_entries()[name].needs_checkpoint else None
    with s3prl_bridge.s3prl_build(path):
        return S3PRLUpstream(name, str(checkpoint) if checkpoint else None).eval()


def drawn(featurizer: Any) -> Tensor:
    """Return weights of a layer sum that differ between all layers."""
    if not hasattr(featurizer, "weights"):
        return torch.ones(1)
    with torch.no_grad():
        featurizer.weights.copy_(torch.randn(featurizer.weights.shape, generator=torch.Generator().manual_seed(1)))
    return featurizer.weights.detach().softmax(0)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_family_keeps_the_contract(name: str, upstream: Callable[[str], Any]) -> None:
    assert [finding for finding in check_contract(upstream(name)) if not finding.ok] == []


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_layer_sum_equals_s3prls_featurizer(
    name: str, upstream: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    from s3prl.nn import Featurizer

    theirs, ours = s3prls_own(name, checkpoint(name)), upstream(name)
    featurizer = Featurizer(theirs)
    weights = drawn(featurizer)
    assert (ours.layers, [ours.dim] * ours.layers, ours.hop) == (
        theirs.num_layers,
        theirs.hidden_sizes,
        theirs.downsample_rates[0],
    )
    for seconds in SECONDS:
        clip = sound(round(16_000 * seconds))
        with torch.no_grad():
            wanted = featurizer(*theirs(clip, torch.tensor([clip.shape[1]])))[0][0]
        frames = encoded(ours, clip)
        both = min(len(frames), len(wanted))
        assert len(frames) - 1 <= both
        assert relative_difference((frames[:both] * weights[:, None]).sum(1)[:, None], wanted[:both, None]) < 1e-4
        if seconds >= 0.05:  # in shorter clips s3prl counts frames of the zeros that it appends
            assert torch.allclose(wanted[both:], wanted[both - 1 : both].expand(len(wanted) - both, -1))


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "discretebert"])
def test_layer_sum_equals_the_featurizer_of_s3prls_own_benchmark(
    name: str, upstream: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    from s3prl.upstream.interfaces import Featurizer

    theirs, clip = s3prls_own(name, checkpoint(name)).upstream, sound(19_000)
    with s3prl_bridge.s3prl_build(None):
        featurizer = Featurizer(theirs, "hidden_states", upstream_device="cpu")
    weights = drawn(featurizer)
    with torch.no_grad():
        wanted = featurizer([clip[0]], theirs([clip[0]]))[0]
    ours = (encoded(upstream(name), clip) * weights[:, None]).sum(1)
    assert abs(len(ours) - len(wanted)) <= 1
    both = min(len(ours), len(wanted))
    assert relative_difference(ours[:both, None], wanted[:both, None]) < 1e-4


def test_clips_have_the_frames_that_the_model_gives_them(upstream: Callable[[str], Any]) -> None:
    hubert = upstream("hubert_local")
    convolutions = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]
    for samples in (800, 12_345, 32_000, 32_079, 32_080):
        frames = samples
        for kernel, stride in convolutions:
            frames = (frames - kernel) // stride + 1
        assert len(encoded(hubert, sound(samples))) == frames
    assert len(encoded(hubert, sound(32_000))) == 99  # s3prl returns 100 frames


@pytest.mark.parametrize(
    ("strides", "hop"), [((5, 2, 2, 2, 2, 2), 160), ((5, 2, 2, 2, 2, 2, 2, 2), 640), ((5, 4, 4), 80)]
)
def test_the_hop_is_that_of_the_convolutions_whatever_s3prl_says(
    strides: tuple[int, ...], hop: int, tmp_path: Path
) -> None:
    path = s3prl_speech.hubert(tmp_path / "hubert.pt", conv_feature_layers=f"{[(8, 2 * s, s) for s in strides]}")
    upstream = create(f"s3prl:hubert_local@{path}")
    frames = 32_000
    for stride in strides:
        frames = (frames - 2 * stride) // stride + 1
    assert (upstream.hop, len(encoded(upstream, sound(32_000)))) == (hop, frames)
    assert [finding for finding in check_contract(upstream) if not finding.ok] == []


def test_hubert_gives_what_transformers_gives_for_the_same_weights(
    upstream: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("hf_hubert_custom")
    theirs, clip = create(f"hf:{folder}"), sound(24_000)
    assert relative_difference(encoded(upstream("hf_hubert_custom"), clip), encoded(theirs, clip)) < 1e-4


# Weights that are not loaded


def altered(path: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, to)
    return to


def renamed(part: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[part][f"{name}_old"] = state[part].pop(name)

    return change


@pytest.mark.parametrize(
    ("entry", "part", "name"),
    [
        ("hubert_local", "model_weight", "encoder.layers.1.fc1.bias"),
        ("wavlm_local", "model", "layer_norm.weight"),
        ("distilhubert", "Distiller", "encoder.layer_norm.bias"),
        ("modified_cpc", "weights", "gEncoder.conv1.bias"),
        ("vq_wav2vec_gumbel", "model_weight", "vector_quantizer.vars"),
    ],
)
def test_a_renamed_key_is_named_as_missing_and_as_unused(
    entry: str, part: str, name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = altered(checkpoint(entry), tmp_path / "renamed.pt", renamed(part, name))
    with pytest.raises(UpstreamError, match=f"missing: (\\S*\\.)?{name}; of no use: {name}_old"):
        create(f"s3prl:{entry}@{path}")


def test_a_key_that_s3prl_ignores_is_refused_unless_it_is_a_head(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def more(name: str) -> Path:
        return altered(
            checkpoint("modified_cpc"), tmp_path / name, lambda s: s["weights"].update({name: torch.ones(3)})
        )

    with pytest.raises(UpstreamError, match=r"of no use: gAR\.extra"):
        create(f"s3prl:modified_cpc@{more('gAR.extra')}")
    assert create(f"s3prl:modified_cpc@{more('wPrediction.0.weight')}").layers == 2


def test_weights_of_another_shape_are_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def wider(state: dict[str, Any]) -> None:
        state["model_weight"]["layer_norm.weight"] = torch.ones(9)

    path = altered(checkpoint("hubert_local"), tmp_path / "wider.pt", wider)
    with pytest.raises(UpstreamError, match=r"of another shape: layer_norm\.weight"):
        create(f"s3prl:hubert_local@{path}")


@pytest.mark.parametrize(
    ("entry", "other"),
    [("wav2vec2_local", "hubert_local"), ("hubert_local", "wav2vec2_local"), ("data2vec_local", "wav2vec2_local"),
     ("wavlm_local", "modified_cpc"), ("distiller_local", "wavlm_local"), ("wav2vec_local", "wav2vec2_local")],
)  # fmt: skip
def test_a_checkpoint_of_another_family_is_refused(entry: str, other: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UpstreamError) as refusal:
        create(f"s3prl:{entry}@{checkpoint(other)}")
    assert "\n" not in str(refusal.value)


def test_weights_that_are_not_numbers_are_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def broken(state: dict[str, Any]) -> None:
        state["model"]["layer_norm.bias"][3] = float("nan")

    path = altered(checkpoint("wavlm_local"), tmp_path / "nan.pt", broken)
    with pytest.raises(UpstreamError, match=r"NaN or infinite: model\.layer_norm\.bias"):
        create(f"s3prl:wavlm_local@{path}")


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64, torch.bool])
def test_weights_that_are_no_real_numbers_are_named(
    kind: torch.dtype, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def whole(state: dict[str, Any]) -> None:
        state["model_weight"]["layer_norm.weight"] = state["model_weight"]["layer_norm.weight"].to(kind)

    path = altered(checkpoint("hubert_local"), tmp_path / "whole.pt", whole)
    with pytest.raises(UpstreamError, match=r"of another kind of numbers: layer_norm\.weight"):
        create(f"s3prl:hubert_local@{path}")


HUGE = [
    ("hubert_local", "hubert_local", ("model_cfg", "encoder_layers"), 10**7),
    ("wav2vec2_local", "wav2vec2_local", ("model_cfg", "encoder_embed_dim"), 10**6),
    ("wavlm_local", "wavlm_local", ("cfg", "encoder_layers"), 10**7),
    ("data2vec", "data2vec", ("model_cfg", "pos_conv_depth"), 10**7),
    ("distilhubert", "distilhubert", ("Config", "distiller", "encoder_ffn_embed_dim"), 10**8),
    ("multires_hubert_local", "multires_hubert_local", ("task_cfg", "label_rate_ratios"), [10**6, 2]),
    ("cpc_local", "modified_cpc", ("config", "nLevelsGRU"), 10**6),
    ("tera_local", "tera", ("Config", "transformer", "num_hidden_layers"), 10**7),
    ("tera_local", "tera", ("Config", "transformer", "hidden_size"), 10**6),
    ("tera_local", "tera", ("Config", "audio", "input", "delta"), 10**7),
    ("apc_local", "apc", ("config", "model", "paras", "num_layers"), 10**7),
    ("apc_local", "vq_apc", ("config", "model", "paras", "vq", "codebook_size"), [10**9]),
    ("npc_local", "npc", ("config", "model", "paras", "n_blocks"), 10**7),
    ("mae_ast_local", "mae_ast", ("cfg", "model", "encoder_layers"), 10**7),
    ("mae_ast_local", "mae_ast", ("cfg", "model", "ast_kernel_stride_time"), 10**7),
]


@pytest.mark.parametrize(("entry", "family", "keys", "value"), HUGE)
def test_a_configuration_of_a_huge_model_is_refused_at_once(
    entry: str, family: str, keys: tuple[str, ...], value: Any, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def enlarge(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    path = checkpoint(family) if family in CHECKPOINTS else getattr(s3prl_spectral, family)(tmp_path / "model.pt")
    start = time.monotonic()
    with pytest.raises(UpstreamError, match=r"larger model|its configuration says|declared hop is|more memory than"):
        create(f"s3prl:{entry}@{altered(path, tmp_path / 'huge.pt', enlarge)}")
    assert time.monotonic() - start < 5


def without(keys: str, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Remove a nested key or replace its value."""

    def change(state: dict[str, Any]) -> None:
        part, key = keys.split(".")
        state[part].pop(key, None)
        state[part] |= {} if value is None else {key: value}

    return change


@pytest.mark.parametrize(
    ("entry", "keys", "value"),
    [
        *((name, "task_cfg.normalize", None) for name in ("hubert_local", "wav2vec2_local", "data2vec")),
        ("multires_hubert_local", "task_cfg.normalize", None),
        ("hubert_local", "task_cfg.normalize", "no"),
        ("wavlm_large", "cfg.normalize", None),
        ("unispeech_sat_base", "cfg.normalize", "no"),
        ("hubert_local", "task_cfg.sample_rate", 10**9),
        ("wav2vec2_local", "task_cfg.sample_rate", 8_000),
        ("wav2vec", "task_cfg.sample_rate", 8_000),
        ("wavlm_local", "cfg.sample_rate", 8_000),
    ],
)
def test_input_normalisation_must_be_stated_by_the_checkpoint(
    entry: str, keys: str, value: Any, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = altered(checkpoint(entry), tmp_path / "unsaid.pt", without(keys, value))
    what = f"has the sample_rate {value}, where" if "rate" in keys else "does not say whether its input is normalised"
    with pytest.raises(UpstreamError, match=f"^the checkpoint of 's3prl:{entry}' {what}"):
        create(f"s3prl:{entry}@{path}")


@pytest.mark.parametrize(
    ("entry", "keys"),
    [("wavlm_local", "cfg.normalize"), ("unispeech_sat_base", "cfg.normalize"), ("hubert", "task_cfg.sample_rate")],
)
def test_released_checkpoints_without_the_option_use_the_default_of_their_format(
    entry: str, keys: str, upstream: Callable[[str], Any], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = altered(checkpoint(entry), tmp_path / "base.pt", without(keys))
    clip = sound(8_000)
    assert torch.equal(encoded(create(f"s3prl:{entry}@{path}"), clip), encoded(upstream(entry), clip))


def test_an_optimizers_state_is_left_out_and_not_kept(upstream: Callable[[str], Any]) -> None:
    distiller = upstream("distilhubert")
    assert all("all_states" not in vars(module) for module in distiller.modules())


def test_a_folder_without_preprocessing_or_of_another_model_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UpstreamError, match="no wav2vec2 model, but hubert; write hf:"):
        create(f"s3prl:hf_wav2vec2_custom@{checkpoint('hf_hubert_custom')}")
    bare = shutil.copytree(checkpoint("hf_hubert_custom"), tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UpstreamError, match="preprocessor_config"):
        create(f"s3prl:hf_hubert_custom@{bare}")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_folder_cannot_name_hub_code_for_attention(
    key: str, upstream: Callable[[str], Any], checkpoint: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from transformers import HubertModel
    from transformers.integrations import hub_kernels

    requests: list[Any] = []
    for name in ("load_and_register_attn_kernel", "get_kernel"):
        monkeypatch.setattr(hub_kernels, name, lambda *names, **_: requests.append(names), raising=False)
    folder = shutil.copytree(checkpoint("hf_hubert_custom"), tmp_path / "evil")
    config = json.loads((folder / "config.json").read_text())
    more = {key: "evil/kernel@main", "use_kernels": True, "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config | more))
    ours, clip = create(f"s3prl:hf_hubert_custom@{folder}"), sound(8_000)
    assert ours.get_submodule("expert.model").config._attn_implementation in ("sdpa", "eager")
    assert torch.equal(encoded(ours, clip), encoded(upstream("hf_hubert_custom"), clip))
    assert not requests
    assert "from_pretrained" not in vars(HubertModel)


# References


@pytest.mark.parametrize(
    "reference",
    ["hubert_local@{}", "hubert@{}", "hubert_local@/dev/zero", "hubert_local@/", "discretebert@{}", "baseline_local@{}",
     "hf_hubert_custom@{}", "distiller_local@{file}?model_config={}"],
)  # fmt: skip
def test_devices_are_refused_before_they_are_read(
    reference: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UpstreamError, match=r"^no (file|folder) '"):
        create("s3prl:" + reference.format(tmp_path / "pipe", file=checkpoint("distilhubert")))


def test_one_of_several_files_is_refused_with_advice_to_give_the_folder(checkpoint: Callable[[str], Path]) -> None:
    for path in checkpoint("discretebert").iterdir():
        with pytest.raises(UpstreamError, match=r"give the folder that holds vq-wav2vec_kmeans\.pt and vq_"):
            create(f"s3prl:discretebert@{path}")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("s3prl:hubert_bas", "no upstream 'hubert_bas' in s3prl; did you mean 'hubert_base'"),
        ("s3prl:hubert_local", "'s3prl:hubert_local' comes without weights; write s3prl:hubert_local@CHECKPOINT"),
        ("s3prl:hubert_local@nowhere.pt", "no file 'nowhere.pt'"),
        ("s3prl:hubert@", "no file ''"),
        ("s3prl:fbank@nowhere.pt", "'s3prl:fbank' has no weights to load; drop '@nowhere.pt'"),
        ("s3prl:fbank@random", "no random twin of 's3prl:fbank'"),
        ("s3prl:tera_local:tera.pt", "no upstream 'tera_local:tera.pt' in s3prl; .* s3prl:tera_local@tera.pt$"),
        ("s3prl:hf_hubert_custom@facebook/hubert", "no folder 'facebook/hubert'; .* or write hf:facebook/hubert"),
        ("s3prl:mos_apc", "'s3prl:mos_apc' cannot run here: "),
        ("s3prl:", "no upstream '' in s3prl"),
    ],
)
def test_invalid_references_are_refused_with_advice(reference: str, message: str) -> None:
    with pytest.raises(UpstreamError, match=message):
        create(reference)


def test_a_file_is_no_folder_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "h.pt").touch()
    with pytest.raises(UpstreamError, match=r"h\.pt'; give the folder written by save_pretrained$"):
        create(f"s3prl:hf_hubert_custom@{tmp_path}/h.pt")


def test_a_checkpoint_without_an_expected_key_may_be_of_another_family(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    holds = "dictionaries_symbols, model_cfg, model_weight, task_cfg"
    with pytest.raises(
        UpstreamError, match=f"'Config'; the file, which holds {holds}, may be of another family than tera"
    ):
        create(f"s3prl:tera_local@{checkpoint('hubert_local')}")
    torch.save({"args": None, "cfg": {"model": {}}, "model": {}}, tmp_path / "raw.pt")
    with pytest.raises(UpstreamError, match="give one of fairseq's own as fairseq:FILE"):
        create(f"s3prl:hubert_local@{tmp_path / 'raw.pt'}")


def test_limits_of_its_configuration_name_the_reference(tmp_path: Path) -> None:
    path = s3prl_spectral.tera(tmp_path / "tera.pt")
    huge = altered(path, tmp_path / "huge.pt", lambda state: state["Config"]["transformer"].update(num_layers=10**7))
    with pytest.raises(UpstreamError, match=f"^'s3prl:tera_local@{huge}' does not run: its configuration says"):
        create(f"s3prl:tera_local@{huge}")


def test_options_reach_the_model_and_count(upstream: Callable[[str], Any], checkpoint: Callable[[str], Path]) -> None:
    reference = f"s3prl:wav2vec2_local@{checkpoint('wav2vec2_local')}?feature_selection="
    plain, chosen = upstream("wav2vec2_local"), create(f"{reference}fairseq_layers_before_residual")
    assert (plain.layers, chosen.layers) == (3, 2)
    assert fingerprint(create(f"{reference}fairseq_layers")) != fingerprint(chosen)
    with pytest.raises(UpstreamError, match="did you mean 'feature_selection'"):
        create(reference.replace("selection", "selecton"))
    with pytest.raises(UpstreamError, match="no argument 'ckpt'"):
        create(reference.replace("feature_selection", "ckpt"))


def test_a_fingerprint_depends_on_content_not_on_place(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    path = checkpoint("hubert_local")
    moved = create(f"s3prl:hubert_local@{shutil.copy(path, tmp_path / 'other.pt')}")
    assert fingerprint(moved) == fingerprint(create(f"s3prl:hubert_local@{path}"))
    normalized = altered(path, tmp_path / "normalized.pt", lambda state: state["task_cfg"].update(normalize=True))
    assert fingerprint(create(f"s3prl:hubert_local@{normalized}")) != fingerprint(moved)


def test_a_file_that_an_option_names_counts_by_its_content(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def created(name: str, permute: bool) -> Upstream:
        (tmp_path / name).mkdir()
        path = tmp_path / name / "config.yaml"
        path.write_text(f"{{load_pretrain: 'True', no_grad: 'False', permute_input: '{permute}'}}\n")
        return create(f"s3prl:distiller_local@{checkpoint('distilhubert')}?model_config={path}")

    one, same, other = created("one", False), created("same", False), created("other", True)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert set(one.origin) == {"distilhubert.pt", "config.yaml"}


@pytest.mark.parametrize("name", ["hubert_local", "hubert", "hf_hubert_custom", "discretebert"])
def test_files_are_known_by_their_digests(
    name: str, upstream: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(name)
    files = {file.name: file for file in (path.iterdir() if path.is_dir() else [path])}
    assert len(upstream(name).origin) == len(files)
    for file, digest in upstream(name).origin.items():
        assert digest == hashlib.sha256(files[file].read_bytes()).hexdigest()


def test_a_random_twin_has_the_weights_of_s3prls_randomize(
    upstream: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    reference = f"s3prl:hubert_local@{checkpoint('hubert_local')}"
    twin, again = create(f"{reference}@random"), create(f"{reference}@random")
    assert fingerprint(twin) == fingerprint(again) != fingerprint(upstream("hubert_local"))
    projection = twin.get_parameter("expert.model.post_extract_proj.weight")
    assert abs(float(projection.detach().std()) - (2 / sum(projection.shape)) ** 0.5) < 0.1  # Glorot's
    assert [finding for finding in check_contract(twin) if not finding.ok] == []


def test_nothing_is_printed_and_nothing_written(
    checkpoint: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["discretebert", "distilhubert", "hf_hubert_custom", "wavlm_local"]
    for name in names:
        path = tmp_path / name
        (shutil.copytree if checkpoint(name).is_dir() else shutil.copy)(checkpoint(name), path)
        capfd.readouterr()
        encoded(create(f"s3prl:{name}@{path}"), sound(8_000))
        assert capfd.readouterr() == ("", "")
        assert not path.is_dir() or len(list(path.iterdir())) == len(list(checkpoint(name).iterdir()))
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_memory_of_the_last_clip_is_dropped(tmp_path: Path) -> None:
    path = s3prl_speech.cpc(tmp_path / "cpc.pt", samplingType="sequential")
    assert [finding for finding in check_contract(create(f"s3prl:cpc_local@{path}")) if not finding.ok] == []
