"""PMS-SSL: weights that come from and go to transformers and fairseq, and the objective beside its formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.upstreams import models
from tests.upstreams.families.test_fairseq import SMALL as FAIRSEQ
from tests.upstreams.families.test_fairseq import newer, random_weights_model, s3prls
from tests.upstreams.models import padded, refusal_message, relative_error, save, waveform_extractor
from tests.upstreams.training import same
from upstreams import create
from upstreams.base import Upstream, UpstreamError, fingerprint, valid
from upstreams.contract.check import check_contract
from upstreams.pretraining.loop import Schedule, TrainingState, fit
from upstreams.pretraining.methods import AudioBatch, create_method
from upstreams.seeds.filterbank_start import filter_bank
from upstreams.seeds.kmeans_targets import Cepstra
from upstreams.seeds.pms import CONFIG, SIZES, PmsPretraining, TeacherFeatures, layer_drop, load_pms, random_spans
from upstreams.seeds.pms import method as build

TINY = SIZES["mini"]._replace(
    config=SIZES["mini"].config | {"hidden_size": 32, "intermediate_size": 48, "conv_dim": [8, 12, 12]},
    units=(4, 9),
    dim=8,
    frames=200,
    recipe=replace(SIZES["mini"].recipe, steps=6, batch=4, warmup=2, precision="fp32"),
)
PLAN = Schedule(TINY.recipe, seed=3, every=2)
LIKE_BASE: dict[str, Any] = {  # dropped out, normed in groups and after each part, as base is, but small
    "config": SIZES["base"].config | models.SMALL | {"conv_kernel": [80, 5, 2], "conv_stride": [40, 4, 2]},
    "filters": False,
    "normalize": False,
    "bands": (4, None),
    "layers": (1, 2),
    "visible": 0.0,
    "layerdrop": 0.5,
    "gradient": 0.1,
    "centered": False,
}


def clip(seconds: float, seed: int = 0) -> Tensor:
    samples = round(16_000 * seconds)
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise * torch.sin(torch.arange(samples) / 1500.0).abs() + 0.01


CLIPS = [clip(0.8), clip(0.31, 1), clip(1.1, 2)]


def batch_of(*clips: Tensor) -> AudioBatch:
    waveforms, lengths = padded(clips, 0, 0.0)
    return AudioBatch(waveforms, lengths)


def batches(first: int, steps: int = 6) -> Any:
    for step in range(first, steps):
        yield batch_of(*(clip(0.6 + 0.1 * row, 10 * step + row) for row in range(4)))


def tiny(targets: str = "both", **changes: Any) -> Any:
    torch.manual_seed(7)
    size = TINY._replace(**changes)
    return PmsPretraining(size, size.bands, targets, Cepstra(size.centered))


@pytest.fixture(scope="module")
def training() -> Any:
    found = tiny()
    torch.manual_seed(1)
    found.prepare(iter([batch_of(*CLIPS)] * 3))
    return found


@pytest.fixture(scope="module")
def exported(training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pms") / "tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in training.exported().items()}, path)
    return path


def encoded(upstream: Upstream, *clips: Tensor) -> list[Tensor]:
    """Frames (T, L, D) of each clip, all in one batch with NaN in its padding."""
    with torch.no_grad():
        frames, counts = upstream(*padded(clips, 500))
    return [row[:count] for row, count in zip(frames, counts.tolist(), strict=True)]


def alike(one: Upstream, other: Upstream) -> bool:
    pairs = zip(encoded(one, *CLIPS), encoded(other, *CLIPS), strict=True)
    return all(relative_error(given, wanted) < 1e-5 for given, wanted in pairs)


def test_it_keeps_the_contract_of_an_upstream(exported: Path) -> None:
    assert [finding for finding in check_contract(create(f"pms@{exported}")) if not finding.ok] == []


def test_transformers_takes_our_weights_as_they_are_and_gives_our_features_with_open_bands(exported: Path) -> None:
    import transformers

    state = load_file(exported)
    facts = json.loads(bytes(state.pop(CONFIG).tolist()))
    model = transformers.HubertModel(transformers.HubertConfig(**facts["model"])).eval()
    model.load_state_dict(state)
    upstream = create(f"pms@{exported}?bands=none")
    clean = upstream.prepare(CLIPS[0][None], torch.tensor([len(CLIPS[0])]))
    assert float(clean.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(clean.std(correction=0)) == pytest.approx(1.0, rel=1e-4)
    encoder = model.encoder
    wanted = models.plain_stack(encoder.layers, encoder.layer_norm, lambda: model(clean))[0]
    assert relative_error(encoded(upstream, CLIPS[0])[0], wanted) < 1e-5
    assert relative_error(encoded(create(f"pms@{exported}"), CLIPS[0])[0], wanted) > 1e-3


@pytest.mark.parametrize("large", [False, True])
def test_a_folder_of_transformers_gives_its_features(large: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    options = {"do_stable_layer_norm": large, "feat_extract_norm": "layer" if large else "group"}
    reference = save(models.build("hubert", **models.SMALL, **options), waveform_extractor(large), tmp_path)
    plain = create(reference)
    for name in ("config.json", "model.safetensors"):
        upstream = create(f"pms@{tmp_path / name}")
        assert alike(upstream, plain)
        assert upstream.settings()["bands"] == [None, None]
        assert upstream.origin == plain.origin
    assert alike(load_pms(str(tmp_path), False), plain)
    assert not alike(create(f"pms@{tmp_path / 'config.json'}?bands=2,9"), plain)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layout", [newer, s3prls])
def test_a_fairseq_hubert_gives_its_features(layout: Any, normalize: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, options = random_weights_model("hubert", **FAIRSEQ)
    path = tmp_path / "hubert.pt"
    torch.save(layout(model, options, normalize), path)
    upstream, plain = create(f"pms@{path}"), create(f"fairseq:{path}")
    quiet = [0.01 * each for each in CLIPS]  # where what is added to the variance matters
    for given, wanted in zip(encoded(upstream, *quiet), encoded(plain, *quiet), strict=True):
        assert relative_error(given, wanted) < 1e-5
    assert upstream.origin == plain.origin
    assert create(f"pms@{path}?bands=1,none").settings()["bands"] == [1, None]


@pytest.mark.parametrize("family", ["wav2vec2", "data2vec", "wavlm"])
def test_other_models_of_fairseq_are_refused(family: str, tmp_path: Path) -> None:
    model, options = random_weights_model(family, **FAIRSEQ)
    torch.save(newer(model, options, False), tmp_path / "other.pt")
    assert "is of another model than HuBERT" in refusal_message(f"pms@{tmp_path / 'other.pt'}")


def test_other_models_of_transformers_are_refused(tmp_path: Path) -> None:
    save(models.build("wav2vec2", **models.SMALL), waveform_extractor(), tmp_path)
    assert "is of another model than HuBERT; give it as hf:FOLDER" in refusal_message(f"pms@{tmp_path / 'config.json'}")


def test_what_is_exported_is_an_upstream_of_the_same_weights(training: Any, exported: Path) -> None:
    upstream = create(f"pms@{exported}")
    assert alike(upstream, training.eval().encoder)
    assert upstream.settings()["bands"] == [6, 12, 30, None]
    assert list(upstream.origin) == [exported.name]


def test_half_precision_keeps_what_is_exported(exported: Path, tmp_path: Path) -> None:
    halved = {name: each.half() if each.is_floating_point() else each for name, each in load_file(exported).items()}
    save_file(halved, tmp_path / "half.safetensors")
    pairs = zip(
        encoded(create(f"pms@{tmp_path / 'half.safetensors'}"), *CLIPS),
        encoded(create(f"pms@{exported}"), *CLIPS),
        strict=True,
    )
    assert all(relative_error(given, wanted) < 2e-2 for given, wanted in pairs)


def test_a_random_twin_has_the_files_shapes_and_nothing_of_its_weights(exported: Path, tmp_path: Path) -> None:
    trained, twin = create(f"pms@{exported}"), create(f"pms@{exported}@random")
    shapes = [{name: each.shape for name, each in one.state_dict().items()} for one in (trained, twin)]
    assert shapes[0] == shapes[1]
    assert not alike(trained, twin)
    other = {name: each if name == CONFIG else 2 * each for name, each in load_file(exported).items()}
    save_file(other, tmp_path / "other.safetensors")
    assert fingerprint(create(f"pms@{tmp_path / 'other.safetensors'}@random")) == fingerprint(twin)


def test_a_random_twin_of_minis_file_is_mini(tmp_path: Path) -> None:
    trained = create_method("pms", "mini", 5)
    save_file({name: each.contiguous() for name, each in trained.exported().items()}, tmp_path / "mini.safetensors")
    twin = create(f"pms@{tmp_path / 'mini.safetensors'}@random")
    assert fingerprint(twin) == fingerprint(create("pms?size=mini@random"))
    assert sum(each.numel() for each in trained.exported().values()) <= 1_400_000


def test_random_weights_are_the_same_with_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        found = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(fingerprint(create("pms?size=mini@random")))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_mini_begins_with_filters_that_each_answer_to_their_own_tone() -> None:
    bank = filter_bank(40, 240, 16_000)
    spectrum = torch.fft.rfft(bank, 4096).abs()
    peaks = spectrum[:40].argmax(1) * 16_000 / 4096
    mel = [1127 * math.log1p(hertz / 700) for hertz in (60.0, 7600.0)]
    wanted = [700 * math.expm1(each / 1127) for each in np.linspace(*mel, 40)]
    assert np.abs(peaks[3:].numpy() - np.array(wanted)[3:]).max() < 30  # Hz; below, a window holds less than a wave
    torch.testing.assert_close(bank.sum(1), torch.zeros(80), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("length", "share"), [(79, 0.8), (200, 0.8), (200, 0.4), (33, 0.65)])
def test_spans_are_drawn_as_transformers_draws_them(length: int, share: float) -> None:
    from transformers.models.hubert.modeling_hubert import _compute_mask_indices

    np.random.seed(0)
    torch.manual_seed(0)
    number = 4_000
    # One call each: theirs rounds all clips of a call alike.
    wanted = np.stack([_compute_mask_indices((1, length), share, 10, min_masks=1)[0] for _ in range(number)])
    given = random_spans(torch.ones(number, length, dtype=torch.bool), share, 10).numpy()
    assert abs(given.mean() - wanted.mean()) < 0.01
    assert np.abs(given.mean(0) - wanted.mean(0)).max() < 0.05
    assert abs(given.sum(1).std() - wanted.sum(1).std()) < 0.5
    assert given.sum(1).min() >= 10


def test_spans_lie_within_their_clips_and_every_clip_has_one() -> None:
    torch.manual_seed(0)
    there = valid(torch.tensor([1, 4, 10, 11, 25, 60]).repeat(50), 70)
    mask = random_spans(there, 0.8, 10).view(50, 6, 70)
    counts = mask.sum(2)
    assert not (mask & ~there.view(50, 6, 70)).any()
    assert counts[:, :3].unique(dim=0).tolist() == [[1, 4, 10]]
    assert counts[:, 3].unique().tolist() == [10]
    assert counts[:, 4:].min() >= 10
    assert mask[:, 5].any(0)[:60].all()


@pytest.mark.parametrize("visible", [0.0, 0.5])
def test_the_loss_is_that_of_the_formula_written_as_a_loop(training: Any, visible: float) -> None:
    training.train().size = TINY._replace(visible=visible)
    batch = batch_of(*CLIPS)
    torch.manual_seed(4)
    with torch.no_grad():
        terms = training(batch, 0.0).terms
        torch.manual_seed(4)
        known = training.features(*batch[:2])
        counts = (batch.lengths - 400) // 320 + 1
        mask = random_spans(valid(counts, known.shape[1]), 0.8, 10)
        states = training.encoded(batch, mask)
        total = 0.0
        for name, layer in (("coarse", 2), ("fine", 4)):
            parts: dict[bool, list[float]] = {True: [], False: []}
            right = 0
            centers, codes = training.codebooks[name].centers, training.units[name]
            for row, count in enumerate(counts.tolist()):
                for frame in range(count):
                    unit = min(range(len(centers)), key=lambda c: float((centers[c] - known[row, frame]).norm()))
                    guess = training.projections[name](states[layer][row, frame])
                    scores = [float(torch.cosine_similarity(guess, code, dim=0)) / 0.1 for code in codes]
                    masked = bool(mask[row, frame])
                    parts[masked].append(math.log(sum(map(math.exp, scores))) - scores[unit])
                    right += masked and max(scores) == scores[unit]
            assert float(terms[name]) == pytest.approx(np.mean(parts[True]), rel=1e-4)
            assert float(terms[f"{name}_accuracy"]) == pytest.approx(right / int(mask.sum()))
            total += float(np.mean(parts[True])) + visible * float(np.mean(parts[False]))
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-4)
    training.size = TINY


def test_masked_frames_are_not_shown_and_padding_changes_nothing(training: Any) -> None:
    batch = batch_of(*CLIPS)
    counts = training.encoder.frame_lengths(batch.lengths)
    there = valid(counts, int(counts.max()))
    torch.manual_seed(2)
    mask = random_spans(there, 0.8, 10)
    with torch.no_grad():
        together = training.eval().encoded(batch, mask)
        for row, (each, count) in enumerate(zip(CLIPS, counts.tolist(), strict=True)):
            alone = training.encoded(batch_of(each), mask[row : row + 1, :count])
            for one, other in zip(together, alone, strict=True):
                assert relative_error(one[row, :count, None], other[0, :, None]) < 1e-4
        blank = torch.ones_like(mask[:1, : int(counts[0])])
        hidden = [training.encoded(batch_of(each), blank)[-1] for each in (CLIPS[0], clip(0.8, 9))]
        assert torch.equal(*hidden)


def test_the_twin_has_one_target_at_the_top_and_full_attention() -> None:
    twin: Any = build("mini", targets="fine", bands="none")
    assert twin.encoder.bands == (None,) * 4
    names = {name.split(".")[1] for name in twin.state_dict() if name.startswith(("units", "codebooks", "projections"))}
    assert names == {"fine"}
    assert twin.layers["fine"] == 4
    assert len(twin.units["fine"]) == 150


@pytest.mark.parametrize("targets", ["both", "fine"])
def test_every_weight_learns(targets: str) -> None:
    found = tiny(targets)
    found.prepare(batches(0))
    found(next(batches(0)), 0.0).terms["loss"].backward()
    idle = [name for name, each in found.named_parameters() if each.grad is None or not each.grad.any()]
    # What is added to all keys alike changes no attention.
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


def test_a_model_like_base_trains_in_half_precision() -> None:
    found = tiny(**LIKE_BASE)
    history = fit(found, batches, replace(PLAN, recipe=replace(PLAN.recipe, precision="bf16")))
    assert history[-1].step == 6
    assert history[-1].terms.keys() == {
        "loss",
        "coarse",
        "coarse_accuracy",
        "fine",
        "fine_accuracy",
        "masked",
        "gradient",
    }


def test_gradients_of_convolutions_are_scaled_and_no_others() -> None:
    gradients = []
    for scale in (1.0, 0.1):
        found = tiny(**LIKE_BASE | {"gradient": scale}).eval()
        found.prepare(batches(0))
        torch.manual_seed(2)
        found(next(batches(0)), 0.0).terms["loss"].backward()
        gradients.append({name: each.grad for name, each in found.encoder.model.named_parameters()})
    for name, plain in gradients[0].items():
        by = 0.1 if name.startswith("feature_extractor.") else 1.0
        torch.testing.assert_close(gradients[1][name], by * plain, rtol=1e-3, atol=1e-7)


def test_vectors_of_clips_are_means_of_a_middle_layer(training: Any) -> None:
    step = training.train()(batch_of(*CLIPS), 0.0)
    assert step.vectors.shape == (3, 32)
    assert step.vectors.requires_grad


def test_a_training_resumes_bit_for_bit() -> None:
    states: list[TrainingState] = []
    straight = tiny()
    fit(straight, batches, replace(PLAN, save_every=0.0), save=states.append)
    halfway = next(state for state in states if state.facts["step"] == 3)
    torch.manual_seed(99)
    resumed = PmsPretraining(TINY, TINY.bands, "both", Cepstra(True))
    fit(resumed, batches, PLAN, state=halfway)
    assert same(straight.state_dict(), resumed.state_dict())
    again = tiny()
    fit(again, batches, PLAN)
    assert same(straight.state_dict(), again.state_dict())


def test_units_are_found_the_same_with_any_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            training = tiny()
            torch.manual_seed(1)
            training.prepare(batches(0))
            found.append(training.codebooks["fine"].centers)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_no_more_batches_are_read_than_units_need_and_none_at_all_are_too_few() -> None:
    feed = batches(0)
    tiny(frames=100).prepare(feed)
    assert len(list(feed)) == 5
    with pytest.raises(UpstreamError, match="0 frames are too few for 4 units"):
        tiny().prepare(feed)


def test_in_a_second_iteration_units_are_clusters_of_a_layer_of_the_first(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "mini", TINY)
    found: Any = build("mini", teacher=str(exported), layer=3)
    earlier = create(f"pms@{exported}")
    assert found.origin == earlier.origin
    batch = batch_of(*CLIPS)
    before = {name: each.clone() for name, each in found.features.state_dict().items()}
    with torch.no_grad():
        wanted = earlier(*batch[:2]).frames[:, :, 3]
        assert torch.equal(found.train().features(*batch[:2]), wanted)
    fit(found, batches, PLAN)
    assert same(before, found.features.state_dict())
    assert not found.features.training
    centers = found.codebooks["coarse"].centers
    assert centers.shape == (4, 32)
    assert found.exported().keys() == tiny().exported().keys()
    resumed = PmsPretraining(TINY, TINY.bands, "both", TeacherFeatures(load_pms(str(exported), True), 3))
    resumed.load_state_dict(found.state_dict())
    with torch.no_grad():
        assert torch.equal(resumed.features(*batch[:2]), found.features(*batch[:2]))


def test_skipped_blocks_give_what_they_were_given(training: Any) -> None:
    blocks = training.encoder.model.encoder.layers
    frames = torch.randn(2, 20, 32)
    with torch.no_grad():
        with layer_drop(blocks, 1.0):
            first, *others = training.encoder.transform(frames, torch.tensor([6_480, 6_480]))
        assert all(torch.equal(first, each) for each in others[:-1])
        with layer_drop(blocks, 0.0):
            first, *others = training.encoder.transform(frames, torch.tensor([6_480, 6_480]))
        assert not torch.equal(first, others[0])


def test_base_is_hubert_base() -> None:
    import transformers

    size = SIZES["base"]
    with torch.device("meta"):
        model = transformers.HubertModel(transformers.HubertConfig(**size.config))
    assert sum(each.numel() for each in model.parameters()) == 94_371_712
    assert (size.layers, size.units, len(size.bands)) == ((6, 12), (300, 500), 12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": "all"}, "no targets 'all' of pms; write both, coarse or fine"),
        ({"bands": "6,12"}, "pms has 4 layers and bands for 2"),
        ({"layer": 2}, "there is no teacher; give teacher=FILE"),
        ({"teacher": "/nowhere.safetensors"}, "no file '/nowhere.safetensors'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UpstreamError, match=words):
        build("mini", **options)


def test_impossible_teachers_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="layer of pms is 9; that teacher has layers 0 to 4"):
        build("mini", teacher=str(exported), layer=9)
    save(models.build("hubert", **models.SMALL), waveform_extractor(), tmp_path)
    with pytest.raises(UpstreamError, match="the teacher of pms gives a frame every 80 samples"):
        build("mini", teacher=str(tmp_path))
    front_end = tmp_path / "preprocessor_config.json"
    front_end.write_text(json.dumps(json.loads(front_end.read_text()) | {"sampling_rate": 8_000}))
    with pytest.raises(UpstreamError, match="the teacher of pms hears 8000 samples a second; give one of 16000"):
        build("mini", teacher=str(tmp_path))


def changed(state: dict[str, Tensor], **facts: Any) -> dict[str, Tensor]:
    held = json.loads(bytes(state[CONFIG].tolist()))
    held["model"] |= facts.pop("model", {})
    return state | {CONFIG: torch.tensor(list(json.dumps(held | facts).encode()), dtype=torch.uint8)}


BIAS = "encoder.layers.1.attention.q_proj.bias"
BREAKS: dict[str, tuple[Any, str]] = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != BIAS}, f"missing: {BIAS}"),
    "surplus": (lambda s: s | {"more": torch.zeros(1)}, "of no use: more"),
    "misshapen": (lambda s: s | {BIAS: torch.zeros(5)}, f"of another shape: {BIAS}"),
    "NaN": (lambda s: s | {BIAS: torch.full((32,), math.nan)}, "not finite"),
    "no JSON": (lambda s: s | {CONFIG: torch.zeros(9, dtype=torch.uint8)}, f"{CONFIG} in '.*' cannot be read"),
    "floats": (lambda s: s | {CONFIG: torch.zeros(9)}, "cannot be read"),
    "nothing": (lambda s: s | {CONFIG: torch.tensor(list(b"{}"), dtype=torch.uint8)}, "cannot be read"),
    "nested": (lambda s: s | {CONFIG: torch.full((90_000,), ord("["), dtype=torch.uint8)}, "cannot be read"),
    "bands": (lambda s: changed(s, bands=[1, 2]), "has 4 layers and bands for 2"),
    "flag": (lambda s: changed(s, normalize=1), "cannot be read"),
    "deep": (lambda s: changed(s, model={"num_hidden_layers": 10**9}), "num_hidden_layers"),
    "huge": (lambda s: changed(s, model={"hidden_size": 99_968}), "a far larger model than its weights"),
    "heads": (lambda s: changed(s, model={"num_attention_heads": 5}), "no model can be built|more than"),
    "stride": (lambda s: changed(s, model={"conv_stride": [0, 1, 2]}), "a frame every 0 samples"),
    "frames": (
        lambda s: changed(s, model={"conv_stride": [1, 2, 4]}),
        "a frame every 8 samples; there may be 1000",
    ),
    "kernel": (lambda s: changed(s, model={"conv_stride": [400, 400, 1]}), "more than 10 s of sound|a frame every"),
}


def test_filters_of_an_odd_number_are_refused(exported: Path, tmp_path: Path) -> None:
    state = load_file(exported)
    facts = json.loads(bytes(state[CONFIG].tolist()))
    channels = facts["model"]["conv_dim"][0] - 1
    facts["filters"], facts["model"]["conv_dim"][0] = True, channels
    state[CONFIG] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    for name in [name for name in state if name.startswith("feature_extractor.conv_layers.0.")]:
        state[name] = state[name][:channels].contiguous()
    second = "feature_extractor.conv_layers.1.conv.weight"
    state[second] = state[second][:, :channels].contiguous()
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(UpstreamError, match=f"has filters and {channels} first channels; cosines and sines come"):
        create(f"pms@{tmp_path / 'odd.safetensors'}")


def test_an_empty_name_of_a_teacher_is_refused() -> None:
    with pytest.raises(UpstreamError, match="teacher of pms is empty"):
        build("mini", teacher="")


@pytest.mark.parametrize("kind", BREAKS)
def test_broken_checkpoints_are_refused(kind: str, exported: Path, tmp_path: Path) -> None:
    change, words = BREAKS[kind]
    save_file(
        {name: each.contiguous() for name, each in change(load_file(exported)).items()}, tmp_path / "x.safetensors"
    )
    with pytest.raises(UpstreamError, match=words):
        create(f"pms@{tmp_path / 'x.safetensors'}")


def test_a_checkpoint_whose_description_is_no_tensor_is_refused(exported: Path, tmp_path: Path) -> None:
    torch.save(load_file(exported) | {CONFIG: [1, 2]}, tmp_path / "x.pt")
    assert f"{CONFIG} in '{tmp_path / 'x.pt'}' cannot be read" in refusal_message(f"pms@{tmp_path / 'x.pt'}")


def test_references_that_contradict_themselves_are_refused(exported: Path, tmp_path: Path) -> None:
    assert "leave it out" in refusal_message(f"pms@{exported}?size=base")
    assert "pms needs a checkpoint" in refusal_message("pms")
    assert "no size 'tiny' of pms; it takes: mini, base" in refusal_message("pms?size=tiny@random")
    assert "has 4 layers and bands for 1" in refusal_message("pms?size=mini&bands=3@random")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "strange.pt")
    assert "is no fairseq checkpoint" in refusal_message(f"pms@{tmp_path / 'strange.pt'}")
