"""Held against its authors' modules and torchaudio.

data/atst.npz holds what audiossl (Audio-WestlakeU/audiossl at ec3a14db: models/atst, transforms) made of weights and
sounds that are drawn here again: AST with 2 blocks of 64 channels and AST_small, without drop path in the objective.
"""

from __future__ import annotations

import argparse
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.upstreams.models import padded
from upstreams import build_seeded, create
from upstreams.base import UpstreamError
from upstreams.contract.check import check_contract
from upstreams.precision import with_precision
from upstreams.pretraining.methods import AudioBatch
from upstreams.pretraining.teacher import embedding_spread, perceptron, teacher_of
from upstreams.seeds.atst import (
    MINI,
    SIZES,
    Atst,
    AtstNetwork,
    AtstPretraining,
    AtstSize,
    Encoder,
    atst,
    byol_loss,
    method,
)
from upstreams.seeds.augmented_views import randomly_mixed, randomly_resized, view_segments
from upstreams.seeds.decibel_mel import DecibelMel
from upstreams.seeds.transformer import TransformerBlock
from upstreams.torchaudio_guard import guard

CLOSE = 1e-5
LENGTHS = (12_345, 97_000, 146_000, 230_000)  # samples of the sounds in data/atst.npz
TINY = AtstSize(64, 2, 32, 16, 1.0, 0.9, MINI)
State = dict[str, Tensor]


@cache
def authors() -> dict[str, Tensor]:
    held = np.load(Path(__file__).parents[1] / "data" / "atst.npz")
    return {name: torch.from_numpy(held[name]) for name in held.files}


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    norm = len(shape) == 1 and name.endswith("weight")
    return torch.from_numpy(values * np.float32(0.06) + norm)


def redrawn(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(draw(name, tuple(weight.shape)))
    return module


@cache
def weights(dim: int = 64, depth: int = 2) -> State:
    """Those of the encoder and its mask_embed, as the authors' module has them."""
    return {"mask_embed": draw("mask_embed", (1, 1, dim)), **redrawn(Encoder(dim, depth)).state_dict()}


def sound(samples: int) -> Tensor:
    swell = np.sin(3 * np.arange(samples) / 16_000) ** 2
    return torch.from_numpy((np.random.RandomState(samples).standard_normal(samples) * 0.1 * swell).astype(np.float32))


def lightning(state: State, **parameters: Any) -> dict[str, Any]:
    """As PyTorch Lightning writes the authors' module."""
    both = {
        f"model.{network}.encoder.{name}": tensor
        for network in ("student", "teacher")
        for name, tensor in state.items()
    }
    both |= {name: 0 * tensor for name, tensor in both.items() if "student" in name}
    heads = {"model.teacher.projector.0.weight": torch.randn(3, 3), "model.student.predictor.0.weight": torch.randn(3)}
    return {"state_dict": both | heads, "pytorch-lightning_version": "2.0", "hyper_parameters": parameters, "epoch": 3}


def dino(state: State, seconds: float = 6.0) -> dict[str, Any]:
    """As the authors' earlier program wrote it, numbers of numpy included."""
    teacher = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    heads = {f"module.head.mlp.{number}.weight": torch.randn(3) for number in range(7)}
    args = argparse.Namespace(arch="ast", anchor_len=[seconds, seconds], lr=np.float64(1e-3))
    student = {name: 0 * tensor for name, tensor in teacher.items()}
    parts = {"student": student, "teacher": teacher | heads, "args": args}
    return {**parts, "optimizer": {}, "epoch": np.int64(3), "byol_loss": {"center": np.float32(1.0)}}


def saved(content: Any, folder: Path) -> str:
    torch.save(content, folder / "some.ckpt")
    return str(folder / "some.ckpt")


@cache
def tiny() -> Atst:
    encoder = Encoder(64, 2)
    encoder.load_state_dict({name: tensor for name, tensor in weights().items() if name != "mask_embed"})
    return Atst(encoder).eval()


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert one.shape == other.shape
    return float(((one - other).abs().max() / other.abs().max()).detach())


def torchaudios(clip: Tensor) -> Tensor:
    guard()
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    spectrum = MelSpectrogram(16_000, n_fft=1024, win_length=1024, hop_length=160, f_min=60, f_max=7800, n_mels=64)
    decibels = AmplitudeToDB("power", top_db=80)(spectrum(clip[None]))
    return ((decibels - -79.6482) / (50.6842 - -79.6482) * 2 - 1)[0]


def test_mel_frames_are_torchaudios_whatever_is_in_the_padding() -> None:
    lengths = (513, 514, 640, 7_999, 16_000, 40_003)
    clips = [sound(length) for length in lengths]
    clips += [torch.zeros(3_000), torch.cat([0.9 * torch.ones(4_000).cumsum(0).sin(), torch.zeros(9_000)])]
    clips += [torch.cat([1e-5 * sound(8_140), torch.ones(19)])]  # loudest in a frame that its reflection fills
    waveforms, counts = padded(clips, extra=777)
    for clip, row in zip(clips, waveforms, strict=True):
        row[len(clip) :] = float("nan")
    mel, frames = DecibelMel()(waveforms, counts)
    for clip, row, count in zip(clips, mel, frames, strict=True):
        expected = torchaudios(clip)
        assert row[:, :count].shape == expected.shape
        assert float((row[:, :count] - expected).abs().max()) < 2e-5
        assert not row[:, count:].any()


def test_clips_too_short_to_be_reflected_are_extended_with_zeros() -> None:
    mel = DecibelMel()
    for length in (400, 479, 512):
        clip = sound(length)
        alone, frames = mel(*padded([clip]))
        expected = torchaudios(torch.cat([clip, torch.zeros(513 - length)]))
        torch.testing.assert_close(alone[0], expected, rtol=0, atol=2e-5)
        assert frames.tolist() == [4]
        torch.testing.assert_close(mel(*padded([clip, sound(2_000)]))[0][:1, :, :4], alone)


def test_a_frame_needs_as_many_samples_as_hop_and_window_say() -> None:
    lengths = torch.cat([torch.arange(400, 4_000), torch.arange(96_000, 97_000)])
    tokens = (lengths.clamp(min=513) // 160 + 1) // 4
    assert torch.equal(tiny().frame_lengths(lengths), tokens)


@pytest.mark.parametrize(("layout", "dim", "depth"), [(lightning, 64, 2), (dino, 384, 12)])
def test_every_block_of_the_authors_checkpoints_is_theirs(layout: Any, dim: int, depth: int, tmp_path: Path) -> None:
    upstream = atst(saved(layout(weights(dim, depth)), tmp_path)).eval()
    with torch.inference_mode():
        frames, counts = upstream(*padded([sound(LENGTHS[0]), sound(30_000)], extra=100))
    expected = authors()["tiny_frames" if depth == 2 else "small_frames"]  # of small, the last frame only
    found = frames[0, : counts[0]][-len(expected) :]
    assert counts[0] == 19
    for layer in range(depth + 1):
        assert apart(found[:, layer], expected[:, layer]) < CLOSE


def test_summaries_are_those_of_the_authors_linear_protocol() -> None:
    clips = [sound(length) for length in LENGTHS]
    with torch.inference_mode():
        together = tiny().summarize(*padded(clips, extra=50))
        for found, expected, clip in zip(together, authors()["tiny_summary"], clips, strict=True):
            assert apart(found[:, :64], expected[:, :64]) < CLOSE
            assert apart(found[:, 64:], expected[:, 64:]) < CLOSE
            assert apart(tiny().summarize(*padded([clip]))[0], expected) < CLOSE


def test_summaries_of_the_small_size_are_the_authors(tmp_path: Path) -> None:
    upstream = atst(saved(weights(384, 12), tmp_path)).eval()
    with torch.inference_mode():
        found = upstream.summarize(*padded([sound(LENGTHS[2])]))
    assert found.shape == (1, 12, 768)
    assert apart(found, authors()["small_summary"]) < CLOSE


def test_a_later_chunk_counts_if_more_than_half_of_it_is_sound() -> None:
    clip = sound(146_000)
    first = 901 * 160 - 1  # samples of 901 mel frames, 300 of them in the second chunk
    with torch.inference_mode():
        without, with_it = (tiny().summarize(*padded([clip[:length]]))[0, -1, :64] for length in (first, first + 1))
        frames, _ = tiny().mel(*padded([clip[:first]]))
        only = tiny().encode(frames[:, :, :601], torch.tensor([601]))[0, 0, -1]
    torch.testing.assert_close(without, only)
    assert apart(with_it, only) > 0.01


def test_long_clips_are_encoded_in_stretches_of_a_segment() -> None:
    clip = sound(230_000)
    with torch.inference_mode():
        frames, counts = tiny()(*padded([clip, sound(100_000)]))
        mel = torchaudios(clip)
        parts = [mel[None, :, start : start + 600] for start in range(0, 1436, 600)]
        expected = [tiny().encode(part, torch.tensor([part.shape[2]]))[0, 1:] for part in parts]
    assert counts.tolist() == [359, 156]
    assert apart(frames[0], torch.cat(expected)) < CLOSE
    assert not frames[1, 156:].any()


@pytest.mark.parametrize("size", ["mini", "tiny"])
def test_the_contract_holds(size: str) -> None:
    upstream = create(f"atst?size={size}@random")
    assert (upstream.layers, upstream.dim) == (SIZES[size].depth + 1, SIZES[size].dim)
    faults = [finding for finding in check_contract(upstream) if not finding.ok]
    assert not faults


def test_fine_tuning_reaches_every_weight() -> None:
    upstream = create("atst?size=mini@random").train()
    frames, _ = upstream(*padded([sound(99_000), sound(5_000)]))  # positions of a whole segment
    torch.manual_seed(0)
    (frames * torch.randn_like(frames)).sum().backward()
    assert [name for name, each in upstream.named_parameters() if each.grad is None or not each.grad.any()] == []


@torch.inference_mode()
def test_reduced_precision_changes_features_little_and_the_front_end_not_at_all() -> None:
    upstream = create("atst?size=tiny@random")
    clips = padded([sound(20_000), sound(5_000)])
    half = with_precision("bf16", upstream)
    summaries = [each.summarize(*clips) for each in (upstream, half)]
    for full, reduced in ((upstream(*clips).frames, half(*clips).frames), summaries):
        assert reduced.dtype == torch.float32
        assert 1e-5 < float((full - reduced).norm() / full.norm()) < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        reduced = upstream.mel(*clips)[0]
    assert torch.equal(reduced, upstream.mel(*clips)[0])


def layouts(state: State) -> dict[str, Any]:
    own = {f"model.teacher.encoder.{name}": tensor for name, tensor in state.items() if name != "mask_embed"}
    return {
        "Lightning": lightning(state),
        "DINO": dino(state),
        "the encoder alone": state,
        "ours": {**own, "hyper_parameters.train_len": torch.tensor(6.0)},
    }


@pytest.mark.parametrize("layout", ["Lightning", "DINO", "the encoder alone", "ours"])
def test_all_layouts_hold_the_same_encoder(layout: str, tmp_path: Path) -> None:
    reference = saved(layouts(weights())[layout], tmp_path)
    upstream = atst(reference)
    assert upstream.encoder.state_dict().keys() == weights().keys() - {"mask_embed"}
    for name, tensor in upstream.encoder.state_dict().items():
        assert torch.equal(tensor, weights()[name])
    assert upstream.origin.keys() == {"some.ckpt"}
    assert upstream.settings() == tiny().settings()
    assert upstream.settings()["stretch"] == 150


def test_the_length_of_segments_is_the_checkpoints_own(tmp_path: Path) -> None:
    own = {f"model.teacher.encoder.{name}": tensor for name, tensor in weights().items()}
    halves = {name: tensor.half() for name, tensor in (own | {"hyper_parameters.train_len": torch.tensor(1.6)}).items()}
    cases = {(40, 161): halves, (225, 901): lightning(weights(), train_len=9.0), (200, 801): dino(weights(), 8.0)}
    for (stretch, chunk), content in cases.items():
        settings = atst(saved(content, tmp_path)).settings()
        assert (settings["stretch"], settings["chunk"]) == (stretch, chunk)


def test_there_are_no_more_positions_than_the_checkpoint_has(tmp_path: Path) -> None:
    short = {**weights(), "pos_embed": weights()["pos_embed"][:, :31]}
    upstream = atst(saved(short, tmp_path)).eval()
    assert (upstream.stretch, upstream.chunk) == (30, 123)
    with torch.inference_mode():
        assert upstream(*padded([sound(97_000)])).frames.isfinite().all()
        assert upstream.summarize(*padded([sound(97_000)])).isfinite().all()


def test_random_twins_have_the_files_architecture_and_other_weights(tmp_path: Path) -> None:
    reference = saved(lightning(weights(), train_len=2.0), tmp_path)
    twins = [build_seeded(lambda: atst(reference, random=True)) for _ in range(2)]
    for name, tensor in twins[0].encoder.state_dict().items():
        assert tensor.shape == weights()[name].shape
        assert not torch.equal(tensor, weights()[name])
        assert torch.equal(tensor, twins[1].encoder.state_dict()[name])
    assert twins[0].settings() == atst(reference).settings()
    assert twins[0].origin.keys() == {"some.ckpt"}


def test_a_size_beside_a_checkpoint_is_refused_as_the_file_has_its_own(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"the size of 'atst@.*some\.ckpt' is that of the file"):
        create(f"atst@{saved(weights(), tmp_path)}?size=tiny")


def changed(**others: Any) -> Any:
    return {name: tensor for name, tensor in {**weights(), **others}.items() if tensor is not None}


NOT_FINITE = torch.full((1, 1, 64), float("nan"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: changed(cls_token=None), "missing: cls_token"),
        (lambda: changed(**{"norm.bias": torch.zeros(63)}), r"another shape: norm\.bias"),
        (lambda: changed(norm_frame=torch.zeros(2)), "of no use: norm_frame"),
        (lambda: changed(**{"blocks.7.norm1.bias": torch.zeros(64)}), r"missing: blocks\.2\.attn"),
        (lambda: changed(cls_token=NOT_FINITE), "not finite: cls_token"),
        (lambda: changed(cls_token=torch.full((1, 1, 64), 1e300, dtype=torch.float64)), "not finite: cls_token"),
        (lambda: changed(**{f"blocks.{number}.x": torch.zeros(1) for number in range(1001)}), "holds no encoder"),
        (lambda: {"module.p_input_fdim": torch.tensor(128)}, "holds no encoder of ATST"),
        (lambda: {**lightning(weights()), "hyper_parameters": {"train_len": True}}, "segments of True s"),
        (lambda: changed(cls_token=NOT_FINITE.long()), "no floating-point numbers at cls_token"),
        (lambda: changed(pos_embed=torch.zeros(1, 5, 60)), "holds no encoder of ATST"),
        (lambda: changed(pos_embed=None), "holds no encoder of ATST"),
        (lambda: {"weight": torch.zeros(3)}, "holds no encoder of ATST"),
        (lambda: {"teacher": 3}, "no weights by name"),
        (lambda: [1], "no weights by name"),
        (lambda: {**lightning(weights()), "hyper_parameters": {"train_len": "six"}}, "segments of 'six' s"),
        (lambda: dino(weights(), float("nan")), "segments of nan s"),
        (
            lambda: {**layouts(weights())["ours"], "model.decoder.0.weight": torch.zeros(2)},
            r"of no use: model\.decoder",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_what_is_wrong(content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=told):
        atst(saved(content(), tmp_path))


def test_a_checkpoint_or_random_weights_are_asked_for() -> None:
    with pytest.raises(UpstreamError, match="needs its checkpoint: atst@FILE"):
        create("atst")
    with pytest.raises(UpstreamError, match="no size 'huge' of atst; it takes: mini, tiny, small, base"):
        atst(random=True, size="huge")
    with pytest.raises(UpstreamError, match="no size 'bass' of atst; did you mean 'base'"):
        create("atst?size=bass@random")
    with pytest.raises(UpstreamError, match="no file"):
        atst("/nowhere/atst.ckpt")


def objective(mix: float = 0.4, resize: bool = True) -> AtstPretraining:
    return AtstPretraining(TINY, mix, resize).train()


def undropped(trained: AtstPretraining) -> AtstPretraining:
    for module in trained.modules():
        if isinstance(module, TransformerBlock):
            module.drop = 0.0
    return trained


def clips(number: int = 6) -> AudioBatch:
    """Tones of different pitch, the last one shorter than a segment."""
    seconds = torch.arange(32_000) / 16_000
    tones = [(torch.sin(6.28 * 200 * 1.5**each * seconds) * 0.3) for each in range(number - 1)]
    return AudioBatch(*padded([*tones, sound(5_000)]))


def test_heads_and_loss_are_the_authors() -> None:
    student = AtstNetwork(Encoder(64, 2), perceptron(64, 32, 16), perceptron(16, 32, 16))
    teacher = teacher_of(AtstNetwork(redrawn(student).encoder, student.projector, nn.Identity()))
    for weight in teacher.parameters():
        weight *= 0.9
    mel = torch.cat([torch.from_numpy(np.random.RandomState(seed).standard_normal((4, 64, 40))) for seed in (1, 2)])
    frames = torch.tensor([40, 40, 25, 12] * 2)
    guess, target = student(mel.float(), frames), teacher(mel.float(), frames)
    loss = byol_loss(guess, target)
    loss.backward()
    assert apart(guess, authors()["guess"]) < CLOSE
    assert apart(target, authors()["target"]) < CLOSE
    assert float(loss.detach()) == pytest.approx(float(authors()["loss"]), rel=1e-5)
    gradient = student.encoder.patch_embed["patch_embed"].weight.grad
    assert gradient is not None
    assert apart(gradient[:8], authors()["gradient"]) < 1e-4


def test_the_loss_compares_each_view_with_the_other_one() -> None:
    one, two = torch.eye(4)[:2], torch.eye(4)[2:]
    assert float(byol_loss(torch.cat([one, two]), torch.cat([two, one]))) == 0.0
    assert float(byol_loss(torch.cat([one, two]), torch.cat([one, two]))) == 2.0
    assert float(byol_loss(torch.cat([one, two]), -torch.cat([two, one]))) == 4.0


def test_views_are_two_segments_that_differ() -> None:
    plain = objective(mix=0.0, resize=False)
    torch.manual_seed(0)
    (one, frames), (two, _) = plain.view(clips()), plain.view(clips())
    assert frames.tolist() == [101] * 5 + [32]
    assert one.shape == (6, 64, 101)
    assert not torch.equal(one[:5], two[:5])
    torch.testing.assert_close(one[5, :, :32], torchaudios(sound(5_000)), rtol=0, atol=2e-5)


def test_a_student_is_asked_what_its_teacher_makes_of_the_views() -> None:
    torch.manual_seed(0)
    trained = objective(mix=0.0, resize=False)
    redrawn(trained.teacher)
    trained = undropped(trained)
    torch.manual_seed(1)
    found = trained(clips(), 0.0).terms
    torch.manual_seed(1)
    mel, frames = (torch.cat(parts) for parts in zip(trained.view(clips()), trained.view(clips()), strict=True))
    guess, target = trained.student(mel, frames), trained.teacher(mel, frames)
    torch.testing.assert_close(found["loss"], byol_loss(guess, target))
    torch.testing.assert_close(found["teacher_spread"], embedding_spread(target))


def test_views_are_mixed_and_then_resized_unless_options_say_otherwise() -> None:
    def view(mix: float, resize: bool) -> Tensor:
        trained = objective(mix, resize)
        torch.manual_seed(1)
        return trained.view(clips())[0]

    plain, frames = view(0.0, False), torch.tensor([101] * 5 + [32])
    torch.manual_seed(1)
    view_segments(*clips()[:2], 16_000)
    both = randomly_mixed(plain, frames, 0.4)
    whole = randomly_resized(both, frames)
    torch.testing.assert_close(view(0.4, False), both)
    torch.testing.assert_close(view(0.4, True), whole)
    assert apart(view(0.0, True), plain) > 0.1


def test_gradients_reach_every_weight_of_the_student_and_none_of_the_teacher() -> None:
    torch.manual_seed(0)
    trained = objective()
    before = [weight.clone() for weight in trained.teacher.parameters()]
    terms = trained(clips(), 0.0).terms
    assert terms.keys() == {"loss", "student_spread", "teacher_spread"}
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    terms["loss"].backward()
    assert all(weight.grad is not None for weight in trained.student.parameters())
    assert all(weight.grad is None for weight in trained.teacher.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, trained.teacher.parameters(), strict=True))


def test_the_teacher_follows_its_student_by_a_momentum_that_rises_to_one() -> None:
    trained = objective()
    with torch.no_grad():
        for weight in trained.student.parameters():
            weight += 1.0
    own, other = trained.teacher.encoder.cls_token, trained.student.encoder.cls_token
    before = own.clone()
    trained.stepped(0.5)
    torch.testing.assert_close(own, 0.95 * before + 0.05 * other)
    before = own.clone()
    trained.stepped(1.0)
    assert torch.equal(own, before)


def test_both_networks_drop_paths_in_training_more_of_them_in_later_blocks() -> None:
    trained = method("tiny")
    for network in (trained.student, trained.teacher):
        shares = [block.drop for block in network.encoder.blocks]
        assert shares == pytest.approx(np.linspace(0, 0.1, 12).tolist())


def test_a_step_is_what_the_seed_says() -> None:
    torch.manual_seed(0)
    trained = objective()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(float(trained(clips(), 0.0).terms["loss"].detach()))
    assert losses[0] == losses[1] != losses[2]


def test_reduced_precision_does_not_reach_the_loss() -> None:
    torch.manual_seed(0)
    trained = undropped(objective())
    torch.manual_seed(1)
    exact = trained(clips(), 0.0).terms["loss"]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = trained(clips(), 0.0).terms["loss"]
    assert reduced.dtype == torch.float32
    assert float(reduced.detach()) == pytest.approx(float(exact.detach()), abs=0.05)


def test_the_loss_falls_and_clips_stay_apart() -> None:
    torch.manual_seed(0)
    trained = objective()
    optimizer = torch.optim.AdamW([each for each in trained.parameters() if each.requires_grad], lr=1e-3)
    losses = []
    for step in range(30):
        terms = trained(clips(), step / 30).terms
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        trained.stepped((step + 1) / 30)
        losses.append(float(terms["loss"].detach()))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    assert float(terms["teacher_spread"]) > 0.2


def test_what_is_exported_is_read_back_as_the_teachers_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = objective()
    redrawn(trained.teacher)
    upstream = atst(saved(trained.exported(), tmp_path)).eval()
    batch = clips()[:2]
    with torch.inference_mode():
        expected = Atst(trained.teacher.encoder.eval(), 1.0)
        assert torch.equal(upstream(*batch).frames, expected(*batch).frames)
        assert torch.equal(upstream.summarize(*batch), expected.summarize(*batch))
    assert upstream.settings() == expected.settings()


def test_the_authors_rates_are_scaled_to_their_batches() -> None:
    small, base = SIZES["small"], SIZES["base"]
    assert small.recipe.lr == pytest.approx(5e-4 * 384 * 4 / 256)
    assert base.recipe.lr == pytest.approx(2e-4 * 256 * 6 / 256)
    assert (small.momentum, base.momentum) == (0.99, 0.9995)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": "big"}, "no size 'big' of atst"),
        ({"size": "mini", "mix": 1.5}, "mix of atst is 1.5"),
        ({"size": "mini", "mix": True}, "mix of atst is True"),
        ({"size": "mini", "resize": "no"}, "resize of atst is 'no'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        method(**options)
