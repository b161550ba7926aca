"""Held against SpeechBrain's own encoder on each clip alone, and against literal loops."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.upstreams.models import padded
from tests.upstreams.training import same
from upstreams import create
from upstreams.base import UpstreamError
from upstreams.contract.check import check_contract
from upstreams.precision import with_precision
from upstreams.pretraining.loop import Schedule, fit
from upstreams.pretraining.metadata_triplet import WithMetadata
from upstreams.pretraining.methods import AudioBatch
from upstreams.safety.configuration_limits import count_weights
from upstreams.seeds import masr
from upstreams.seeds.masr import (
    OBJECTIVES,
    RECIPES,
    SIZES,
    Conformer,
    Masr,
    MasrPretraining,
    MasrSize,
    method,
    noise_masked,
    relative_positions,
    size_of,
    stacked_mel,
)  # fmt: skip
from upstreams.seeds.random_projection import Quantizer

TINY = MasrSize(32, 2, 48, 2, 5, 4)
LENGTHS = (400, 1_999, 16_000, 23_456, 30_001)  # samples


def sounds(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    dice = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=dice) * 0.1 for length in lengths]


@cache
def tiny() -> Masr:
    """With biases that are not zero, as after training."""
    torch.manual_seed(0)
    upstream = Masr(TINY).eval()
    with torch.no_grad():
        for weight in upstream.network.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return upstream


def apart(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


@torch.inference_mode()
def test_layers_are_speechbrains_on_each_clip_alone_whatever_is_in_the_padding() -> None:
    upstream, clips = tiny(), sounds()
    waveforms, lengths = padded(clips, extra=5_000)
    for clip, row in zip(clips, waveforms, strict=True):
        row[len(clip) :] = float("nan")
    frames, counts = upstream(waveforms, lengths)
    theirs = upstream.network.encoder
    theirs.output_hidden_states = True
    for clip, row, count in zip(clips, frames, counts.tolist(), strict=True):
        tokens = upstream.network.subsampling(upstream.mel(*padded([clip])))
        assert tokens.shape[1] == count
        last, _, states = theirs(tokens, pos_embs=relative_positions(count, TINY.dim, tokens.device))
        expected = torch.stack([*states[:-1], last], dim=2)[0]
        assert apart(row[:count], expected) < 1e-5
        assert not row[count:].any()


@torch.inference_mode()
def test_speechbrains_own_handling_of_padding_would_let_it_be_seen() -> None:
    upstream = tiny()
    tokens = torch.randn(1, 30, TINY.dim, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(30)[None] >= 20
    places = [relative_positions(number, TINY.dim, tokens.device) for number in (30, 20)]
    theirs = upstream.network.encoder(tokens, src_key_padding_mask=padding, pos_embs=places[0])[0]
    alone = upstream.network.encoder(tokens[:, :20], pos_embs=places[1])[0]
    assert apart(theirs[:, :20], alone) > 1e-3


@torch.inference_mode()
def test_tokens_are_those_of_convolutions_that_see_seven_mel_frames() -> None:
    network, dice = tiny().network.subsampling, torch.Generator().manual_seed(0)
    mel = torch.randn(1, 31, 80, generator=dice)
    tokens = network(mel)
    assert tokens.shape == (1, 7, TINY.dim)
    for place in range(7):
        torch.testing.assert_close(network(mel[:, 4 * place : 4 * place + 7])[0, 0], tokens[0, place])
    changed = mel.clone()
    changed[:, 11] += 1
    moved = (network(changed) - tokens)[0].abs().amax(1) > 0
    assert moved.tolist() == [False, False, True, False, False, False, False]  # frames 8 to 14 alone hold 11


@torch.inference_mode()
def test_a_frame_needs_as_many_samples_as_hop_and_window_say() -> None:
    upstream = tiny()
    assert (upstream.hop, upstream.window) == (640, 1_360)
    for length in (400, 1_359, 1_999, 2_000, 2_639, 2_640):
        mel = upstream.mel(*padded(sounds((length,))))
        tokens = upstream.network.subsampling(mel)
        assert upstream.frame_lengths(torch.tensor([length])).tolist() == [tokens.shape[1]]


def test_positions_tell_how_far_before_or_after_a_token_is() -> None:
    table = relative_positions(5, 8, torch.device("cpu"))[0]
    for row, ahead in zip(table, range(4, -5, -1), strict=True):
        rates = [10_000 ** (-channel / 8) for channel in range(0, 8, 2)]
        expected = [
            value for rate in rates for value in (torch.tensor(ahead * rate).sin(), torch.tensor(ahead * rate).cos())
        ]
        torch.testing.assert_close(row, torch.stack(expected))


@torch.inference_mode()
def test_attention_by_position_alone_depends_on_the_signed_distance() -> None:
    encoder: Any = tiny().network.encoder
    layer = encoder.layers[0].mha_layer
    tokens = torch.zeros(1, 6, TINY.dim)
    table = relative_positions(6, TINY.dim, tokens.device)
    _, weights = layer(tokens, tokens, tokens, pos_embs=table)
    keys = layer.linear_pos(table).view(-1, TINY.heads, TINY.dim // TINY.heads)
    bias = layer.pos_bias_v.view(TINY.heads, -1)
    for query in range(6):
        ahead = torch.tensor([query - key for key in range(6)])  # how far the key is before the query
        scores = (keys[5 - ahead] * bias).sum(2) / TINY.dim**0.5
        torch.testing.assert_close(weights[0, :, query], scores.T.softmax(1))


@pytest.mark.parametrize("reference", ["masr?size=mini@random"])
def test_the_contract_holds(reference: str) -> None:
    upstream = create(reference)
    assert (upstream.layers, upstream.dim) == (5, 128)
    assert not [finding for finding in check_contract(upstream) if not finding.ok]


def test_reduced_precision_changes_features_little_and_the_front_end_not_at_all() -> None:
    upstream, clips = tiny(), padded(sounds((16_000, 9_000)))
    with torch.inference_mode():
        full, reduced, mel = (
            upstream(*clips).frames,
            with_precision("bf16", upstream)(*clips).frames,
            upstream.mel(*clips),
        )
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(upstream.mel(*clips), mel)
    assert 1e-5 < float((full - reduced).norm() / full.norm()) < 0.03


def test_fine_tuning_reaches_every_weight() -> None:
    torch.manual_seed(0)
    upstream = Masr(TINY).train()
    frames, _ = upstream(*padded(sounds((16_000, 3_000))))
    (frames * torch.randn_like(frames)).sum().backward()
    assert [name for name, each in upstream.named_parameters() if each.grad is None or not each.grad.any()] == []


@pytest.mark.parametrize(
    ("size", "least", "most"), [("mini", 1.0e6, 1.4e6), ("base", 25e6, 35e6), ("large", 1.1e8, 1.3e8)]
)
def test_sizes_are_as_large_as_told(size: str, least: float, most: float) -> None:
    assert least < count_weights(lambda: Conformer(size_of(size))) < most


def test_codes_are_the_nearest_of_each_codebook() -> None:
    torch.manual_seed(0)
    quantizer, frames = Quantizer(12, 3, 20), torch.randn(40, 12) * 3 + 1
    quantizer.measure([frames[:15], frames[15:]])
    mean, deviation = frames.mean(0), frames.std(0, unbiased=False)
    found = quantizer(frames)
    assert found.shape == (40, 3)
    for frame, codes in zip(frames, found.tolist(), strict=True):
        for projection, book, code in zip(quantizer.projections, quantizer.codes, codes, strict=True):
            place = nn.functional.normalize((frame - mean) / deviation @ projection, dim=0)
            distances = [float((place - nn.functional.normalize(each, dim=0)).norm()) for each in book]
            assert code == distances.index(min(distances))


def test_codes_are_those_of_speechbrains_quantizer() -> None:
    from speechbrain.nnet.quantisers import RandomProjectionQuantizer

    torch.manual_seed(0)
    ours, theirs, frames = Quantizer(12, 1, 20), RandomProjectionQuantizer(12, 16, 20), torch.randn(1, 40, 12)
    theirs.P, theirs.CB = ours.projections[0], ours.codes[0]
    assert torch.equal(ours(frames[0])[:, 0], theirs(frames)[0].long())


def test_what_is_measured_does_not_depend_on_the_precision_of_the_weights() -> None:
    single, double, frames = Quantizer(4, 1, 5), Quantizer(4, 1, 5).double(), torch.randn(9, 4) + 2
    for quantizer in (single, double):
        quantizer.measure([frames])
    torch.testing.assert_close(single.mean, double.mean.float())
    torch.testing.assert_close(single.deviation, double.deviation.float())


def test_constant_channels_are_coded_too() -> None:
    quantizer = Quantizer(4, 1, 5)
    quantizer.measure([torch.ones(9, 4)])
    assert quantizer(torch.ones(2, 4)).shape == (2, 1)
    assert quantizer.deviation.min() > 0


def objective() -> MasrPretraining:
    torch.manual_seed(5)
    recipe = replace(RECIPES["mini"], steps=6, batch=4, warmup=2, precision="fp32")
    return MasrPretraining(TINY, recipe, OBJECTIVES["mini"])


def batches(first: int) -> list[AudioBatch]:
    dice = [torch.Generator().manual_seed(step) for step in range(first, 16)]
    lengths = torch.tensor([16_000, 16_000, 9_000, 400])
    speaker = torch.tensor([0, 0, 1, -1])
    return [AudioBatch(0.1 * torch.randn(4, 16_000, generator=each), lengths, {"speaker": speaker}) for each in dice]


def test_masked_tokens_are_in_spans_within_each_clip() -> None:
    method, there = objective(), torch.arange(200) < torch.tensor([200, 60, 7, 1])[:, None]
    torch.manual_seed(3)
    masks = torch.stack([method.mask(there) for _ in range(50)])
    assert not (masks & ~there).any()
    assert masks.any(2).all()
    span, begin = method.objective.span, method.objective.begin
    assert float(masks[:, 0].float().mean()) == pytest.approx(1 - (1 - begin) ** span, abs=0.03)
    runs = "".join("01"[bit] for bit in masks[0, 0].long().tolist()).rstrip("1").split("0")
    assert min(len(run) for run in runs if run) >= span


def test_noise_takes_the_place_of_what_is_coded_of_masked_tokens_alone() -> None:
    mel, mask = torch.randn(2, 23, 80) + 50, torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1] = mask[0, 2] = mask[1, 4] = True
    hidden = noise_masked(mel, mask)
    replaced = (hidden != mel).any(2)
    assert [row.nonzero()[:, 0].tolist() for row in replaced] == [[*range(4, 12)], [*range(16, 20)]]
    assert float(hidden[replaced].std()) == pytest.approx(0.1, abs=0.01)
    coded = stacked_mel(mel, mask).unflatten(1, (4, 80)).flatten(0, 1)
    assert torch.equal(coded, mel[replaced])


def test_the_loss_is_the_cross_entropy_of_every_codebook() -> None:
    method, hidden = objective(), torch.randn(9, TINY.dim)
    codes = torch.randint(256, (9, 2))
    losses, right = [], 0
    for state, pair in zip(method.classifier(hidden), codes.tolist(), strict=True):
        for book, code in enumerate(pair):
            scores = state[256 * book : 256 * (book + 1)].log_softmax(0)
            losses.append(-scores[code])
            right += int(scores.argmax()) == code
    terms = method.terms(hidden, codes)
    torch.testing.assert_close(terms["loss"], torch.stack(losses).mean())
    assert terms["accuracy"].item() == pytest.approx(right / 18)


def test_a_step_tells_codes_of_clean_frames_from_what_is_seen_of_noisy_ones() -> None:
    method, batch = objective(), batches(0)[0]
    mel, there = method.seen(batch)
    torch.manual_seed(1)
    terms, _ = method(batch, 0.0)
    torch.manual_seed(1)
    mask, noise = method.mask(there), 0.1 * torch.randn_like(mel)
    losses = []
    for clean, other, masked, count in zip(mel, noise, mask, there.sum(1).tolist(), strict=True):
        heard = clean.clone()
        for token in masked.nonzero()[:, 0].tolist():
            heard[4 * token : 4 * token + 4] = other[4 * token : 4 * token + 4]
        last = method.network(heard[None, : 4 * count + 3], torch.tensor([count]))[-1][0]
        for token in masked.nonzero()[:, 0].tolist():
            codes = method.quantizer(clean[4 * token : 4 * token + 4].reshape(1, -1))[0]
            scores = method.classifier(last[token]).unflatten(0, (2, -1)).log_softmax(1)
            losses += [-row[code] for row, code in zip(scores, codes.tolist(), strict=True)]
    torch.testing.assert_close(terms["loss"], torch.stack(losses).mean())


def test_ten_batches_settle_mean_and_variance_of_what_is_coded() -> None:
    method, heard = objective(), batches(0)
    method.prepare(iter(heard))
    frames = torch.cat([stacked_mel(*method.seen(batch)) for batch in heard[:10]])
    torch.testing.assert_close(method.quantizer.mean, frames.mean(0))
    torch.testing.assert_close(method.quantizer.deviation, frames.std(0, unbiased=False))


def test_vectors_are_means_over_the_middle_block_of_each_clip_alone() -> None:
    method, batch = objective(), batches(0)[0]
    method.mask = lambda there: torch.zeros_like(there)  # type: ignore[method-assign]
    _, vectors = method(batch, 0.0)
    upstream = Masr(TINY)
    upstream.network.load_state_dict(method.exported())
    torch.testing.assert_close(vectors, upstream.summarize(batch.waveforms, batch.lengths)[:, 1], rtol=1e-4, atol=1e-5)


def trained(with_metadata: bool, **options) -> tuple[dict[str, Tensor], list]:
    own = objective()
    whole = WithMetadata(own, {"speaker": 1.0}) if with_metadata else own
    history = fit(whole, batches, Schedule(own.recipe, every=3, save_every=0.0), **options)
    return whole.state_dict(), history


@pytest.mark.parametrize("with_metadata", [False, True])
def test_trainings_repeat_and_resume_bit_for_bit(with_metadata: bool) -> None:
    states: list = []
    once, history = trained(with_metadata, save=states.append)
    again, _ = trained(with_metadata)
    resumed, same_history = trained(with_metadata, state=states[2])
    assert same(once, again)
    assert same(once, resumed)
    assert history == same_history
    before = objective().state_dict()
    after = {name.removeprefix("method."): tensor for name, tensor in once.items()}
    fixed = [name for name in before if torch.equal(before[name], after[name])]
    assert {name for name in fixed if name.startswith("quantizer.")} == {"quantizer.projections", "quantizer.codes"}
    assert not [name for name in fixed if name.startswith("network.")]


def test_masked_prediction_learns_what_can_be_told() -> None:
    method = objective()
    times = torch.arange(16_000) / 16_000
    tones = torch.stack([0.3 * torch.sin(2 * torch.pi * hertz * times) for hertz in (200, 500, 1_100, 3_000)])
    batch = AudioBatch(tones, torch.full((4,), 16_000))
    plan = Schedule(replace(method.recipe, steps=40, lr=5e-3), every=10)
    history = fit(method, lambda first: [batch] * 60, plan)
    assert history[-1].terms["accuracy"] > 0.6


def saved(weights: dict[str, Tensor], folder: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "some.safetensors")
    return str(folder / "some.safetensors")


def test_what_was_trained_is_read_again(tmp_path: Path) -> None:
    method, clips = objective(), padded(sounds())
    file = saved(method.exported(), tmp_path)
    upstream, twin = create(f"masr@{file}"), create(f"masr@{file}@random")
    expected = Masr(TINY).eval()
    expected.network.load_state_dict(method.exported())
    with torch.inference_mode():
        assert torch.equal(upstream(*clips).frames, expected(*clips).frames)
        assert twin(*clips).frames.shape == expected(*clips).frames.shape
    assert not same(twin.state_dict(), upstream.state_dict())
    assert [*upstream.origin] == ["some.safetensors"]
    half = {name: tensor.half() for name, tensor in method.exported().items()}
    with torch.inference_mode():
        assert apart(create(f"masr@{saved(half, tmp_path)}")(*clips).frames, expected(*clips).frames) < 0.01


def broken(name: str) -> dict[str, Tensor]:
    weights = dict(objective().exported())
    heads = "encoder.layers.0.mha_layer.pos_bias_u"
    kernel = "encoder.layers.0.convolution_module.conv.weight"
    if name == "lacking":
        del weights["encoder.layers.1.norm1.norm.bias"]
    if name == "more":
        weights["classifier.weight"] = torch.zeros(2)
    if name == "not finite":
        weights["encoder.norm.norm.bias"] = torch.full((32,), float("nan"))
    if name == "even":
        weights[kernel] = weights[kernel][:, :, :4]
    if name == "heads":
        weights[heads] = weights[heads][:, :1]
    if name == "misshapen":
        weights["subsampling.proj.weight"] = torch.zeros(32, 81)
    if name == "another":
        weights = {"v.pos_embed": torch.zeros(1, 2, 3)}
    if name == "flat":
        weights[heads] = torch.zeros(32)
    return weights


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lacking", r"not those of MASR's Conformer \(missing: encoder.layers.1.norm1.norm.bias\)"),
        ("more", r"of no use: classifier.weight"),
        ("not finite", "not finite: encoder.norm.norm.bias"),
        ("even", "holds no encoder of MASR"),
        ("heads", "holds no encoder of MASR"),
        ("misshapen", "of another shape: subsampling.proj.weight"),
        ("another", "holds no encoder of MASR"),
        ("flat", "holds no encoder of MASR"),
    ],
)
def test_other_checkpoints_are_refused_by_name(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=told):
        create(f"masr@{saved(broken(name), tmp_path)}")


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("masr", "its authors published none; masr@random"),
        ("masr?size=bse@random", "no size 'bse' of masr; did you mean 'base'"),
        ("masr@nowhere.pt", "no file 'nowhere.pt'"),
    ],
)
def test_references_that_lead_nowhere_are_told(reference: str, told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        create(reference)


def test_the_size_of_a_checkpoint_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="is that of the file"):
        masr.masr(saved(objective().exported(), tmp_path), size="mini")


def test_the_method_goes_by_its_size() -> None:
    with pytest.raises(UpstreamError, match="no size 'huge' of masr"):
        method("huge")
    assert RECIPES.keys() == SIZES.keys()
    assert method("mini").metadata.keys() == {"language", "speaker"}
