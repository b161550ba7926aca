"""DINO: its upstream, what checkpoints it takes, and its objective beside hyperion's losses and slow loops.

`data/dino.npz` holds what hyperion (persephone-dino) made of weights and clips that `dino_drawn` draws again:
embeddings, three losses in a row with the centre after them, and its head's output.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.upstreams.dino_drawn import CLIPS, drawn, drawn_clip, drawn_state, stored
from tests.upstreams.models import refusal_message
from upstreams import create
from upstreams.base import UpstreamError, fingerprint
from upstreams.contract.check import check_contract
from upstreams.families.hyperion import CAPPED, network_of, network_state
from upstreams.families.hyperion import HyperionNetwork as Network
from upstreams.families.hyperion_features import HyperionMel, without_mean
from upstreams.families.residual_xvector import Shape
from upstreams.pretraining.augmentation import SYNTHETIC
from upstreams.pretraining.loop import Schedule, fit
from upstreams.pretraining.methods import AudioBatch, Recipe
from upstreams.seeds.dino import (
    SIZES,
    Dino,
    DinoPretraining,
    ProjectionHead,
    dino_loss,
    entropy,
    method,
    resample_frames,
)

TINY = Shape(4, (1, 1, 1, 1), 12, 80, stride=2)
RECIPE = Recipe(steps=6, batch=4, seconds=0.5, lr=1e-3, precision="fp32")
SIZE = replace(
    SIZES["base"], shape=TINY, hidden=16, bottleneck=8, outputs=24, seconds=(0.4, 0.2), frozen=0.4, recipe=RECIPE
)
CONFIG: dict[str, Any] = {  # as hyperion writes it
    "resnet_type": "lresnet34",
    "in_channels": 1,
    "conv_channels": 16,
    "base_channels": 16,
    "in_kernel_size": 3,
    "in_stride": 1,
    "zero_init_residual": False,
    "groups": 1,
    "replace_stride_with_dilation": [False, False, False],
    "do_maxpool": False,
    "in_norm": False,
    "se_r": 16,
    "res2net_scale": 4,
    "res2net_width_factor": 1,
    "class_name": "ResNetXVector",
    "pool_net": {"dim": -1, "keepdim": False, "pool_type": "mean+stddev"},
    "num_classes": 10,
    "embed_dim": 256,
    "num_embed_layers": 1,
    "hid_act": "relu6",
    "loss_type": "arc-softmax",
    "norm_layer": None,
    "head_norm_layer": None,
    "use_norm": True,
    "norm_before": True,
    "dropout_rate": 0,
    "embed_layer": 0,
    "in_feats": 80,
    "proj_feats": None,
}


@pytest.fixture(scope="module")
def authors() -> dict[str, Tensor]:
    """The drawn weights of the authors' network, by hyperion's names."""
    return drawn_state(Network(SIZES["base"].shape).state_dict())


@pytest.fixture(scope="module")
def trained(authors: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as hyperion's trainer writes it, whose student's weights are other ones."""
    head = {"head.mlp.0.weight": torch.ones(2, 256), "head.last_layer.weight_g": torch.ones(2, 1)}
    teacher = {f"backbone.{name}": tensor for name, tensor in authors.items()}
    student = {f"module.{name}": tensor + 1 for name, tensor in (teacher | head).items()}
    return {
        "epoch": 70,
        "rng_state": torch.get_rng_state(),
        "model_cfg": CONFIG,
        "model_state_dict": student,
        "model_teacher_state_dict": teacher | head,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.95)}]},
        "loss_state_dict": {"center": torch.zeros(1, 2)},
        "logs": {"train_loss": np.float64(3.0), "lr": 0.1},
    }


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def file(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(trained, tmp_path_factory.mktemp("dino") / "model_ep0070.pth")


def tiny() -> Dino:
    network = Network(TINY)
    network.load_state_dict(drawn_state(network.state_dict()))
    return Dino(network).eval()


@pytest.mark.parametrize("seconds", CLIPS)
@torch.inference_mode()
def test_a_clips_summary_is_hyperions_embedding(file: str, seconds: float):
    upstream, clip = create(f"dino@{file}"), drawn_clip(seconds)
    upstream.network.mel = HyperionMel(dither=0.0)
    found = upstream.summarize(clip[None], torch.tensor([len(clip)]))
    expected = stored[f"embedding relu6 {seconds}"]
    assert found.shape == (1, 1, 256)
    assert np.abs(found[0, 0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_teachers_weights_are_taken(file: str, authors: dict[str, Tensor]):
    found = create(f"dino@{file}").network.state_dict()
    assert found.keys() == authors.keys()
    assert all(torch.equal(found[name], authors[name]) for name in authors)


def test_without_a_teacher_the_models_weights_are_taken(trained: dict[str, Any], tmp_path: Path):
    rest = {name: value for name, value in trained.items() if name != "model_teacher_state_dict"}
    found = create(f"dino@{saved(rest, tmp_path / 'model.pth')}").network.classif_net.fc_blocks[0].linear.weight
    expected = trained["model_teacher_state_dict"]["backbone.classif_net.fc_blocks.0.linear.weight"] + 1
    torch.testing.assert_close(found, expected)


def test_the_activation_is_that_of_the_configuration(trained: dict[str, Any], tmp_path: Path):
    config = CONFIG | {"hid_act": {"name": "relu", "inplace": True}}
    path = saved(trained | {"model_cfg": config}, tmp_path / "model.pth")
    upstream, clip = create(f"dino@{path}"), drawn_clip(1.7)
    upstream.network.mel = HyperionMel(dither=0.0)
    found = upstream.summarize(clip[None], torch.tensor([len(clip)]))[0, 0].detach().numpy()
    expected = stored["embedding relu 1.7"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert fingerprint(upstream) != fingerprint(create(f"dino@{saved(trained, tmp_path / 'other.pth')}"))


def test_the_fingerprint_does_not_depend_on_the_files_name_but_its_origin_tells_it(file: str, tmp_path: Path):
    copy_of = tmp_path / "copy.pth"
    copy_of.write_bytes(Path(file).read_bytes())
    one, other = create(f"dino@{file}"), create(f"dino@{copy_of}")
    assert fingerprint(one) == fingerprint(other)
    assert list(one.origin) == ["model_ep0070.pth"]
    assert len(one.origin["model_ep0070.pth"]) == 64


@pytest.mark.parametrize(
    ("change", "told_of"),
    [
        ({"resnet_type": "seresnet34"}, "resnet_type seresnet34"),
        ({"pool_net": {"pool_type": "ch-wise-att-mean+stddev"}}, "pool_net ch-wise-att-mean"),
        ({"pool_net": "mean+logvar"}, "pool_net mean"),
        ({"hid_act": "swish"}, "hid_act swish"),
        ({"in_norm": True}, "in_norm True"),
        ({"do_maxpool": 1}, "do_maxpool 1"),
        ({"class_name": "EfficientNetXVector"}, "class_name EfficientNetXVector"),
        ({"embed_layer": 1}, "embed_layer 1"),
        ({"replace_stride_with_dilation": [True, False, False]}, "replace_stride_with_dilation"),
        ({"in_feats": torch.tensor([80, 80])}, "in_feats"),
    ],
)
def test_what_is_not_built_here_is_refused_by_its_name(
    trained: dict[str, Any], tmp_path: Path, change: dict[str, Any], told_of: str
):
    path = saved(trained | {"model_cfg": CONFIG | change}, tmp_path / "model.pth")
    assert told_of in refusal_message(f"dino@{path}")


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: [state.pop(each) for each in [*state] if each.startswith(f"backbone.{name}")] and None


BREAKS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "absent": (without("encoder_net.layer3.2.conv1"), "missing: encoder_net.layer3.2.conv1.weight"),
    "surplus": (lambda state: state.update({"backbone.proj.weight": torch.ones(2)}), "of no use: proj.weight"),
    "stage": (without("encoder_net.layer2."), "no residual x-vector"),
    "embedding": (without("classif_net."), "no residual x-vector"),
    "nan": (lambda state: state["backbone.encoder_net.layer1.0.bn1.running_var"].fill_(math.nan), "not finite"),
    "twice": (lambda state: state.update({"encoder_net.in_block.bn.bias": torch.ones(16)}), "twice"),
    "width": (
        lambda state: state.update({"backbone.classif_net.fc_blocks.0.linear.weight": torch.ones(256, 1540)}),
        "no residual x-vector",
    ),
    "kernel": (
        lambda state: state.update({"backbone.encoder_net.in_block.conv.weight": torch.ones(16, 1, 7, 7)}),
        "of another shape: encoder_net.in_block.conv.weight",
    ),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_weights_that_do_not_all_arrive_are_named(trained: dict[str, Any], tmp_path: Path, fault: str):
    change, expected = BREAKS[fault]
    state = copy.deepcopy(trained["model_teacher_state_dict"])
    change(state)
    path = saved(trained | {"model_teacher_state_dict": state}, tmp_path / "model.pth")
    assert expected in refusal_message(f"dino@{path}")


def test_a_dict_without_any_model_is_refused(tmp_path: Path):
    path = saved({"model_cfg": CONFIG, "epoch": 3}, tmp_path / "model.pth")
    assert "no weights" in refusal_message(f"dino@{path}")
    path = saved({"model_cfg": [3], "model_state_dict": {}}, tmp_path / "model.pth")
    assert "model_cfg" in refusal_message(f"dino@{path}")


@pytest.mark.parametrize("capped", [True, False])
def test_what_is_exported_is_read_again(tmp_path: Path, capped: bool):
    network = Network(TINY._replace(capped=capped))
    network.load_state_dict(drawn_state(network.state_dict()))
    path = str(tmp_path / "dino.safetensors")
    save_file(network_state(network), path)
    found = network_of(path)
    assert found.shape == network.shape
    assert found.dim == 12
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("told_of", [torch.zeros(3), torch.zeros(0), torch.tensor(2), torch.tensor(math.nan)])
def test_a_file_that_does_not_tell_the_activation_is_refused(tmp_path: Path, told_of: Tensor):
    path = saved({**network_state(tiny().network), CAPPED: told_of}, tmp_path / "dino.pth")
    assert f"{CAPPED} of '{path}' is neither 0 nor 1" in refusal_message(f"dino@{path}")


def test_random_twins_have_the_files_architecture_and_other_weights(tmp_path: Path):
    path = str(tmp_path / "dino.safetensors")
    save_file(network_state(tiny().network), path)
    torch.manual_seed(0)
    twin, whole = create(f"dino@{path}@random"), create(f"dino@{path}")
    assert twin.network.shape == whole.network.shape
    assert not torch.equal(
        twin.network.encoder_net.in_block.conv.weight, whole.network.encoder_net.in_block.conv.weight
    )
    assert (twin.network.encoder_net.in_block.bn.running_var == 1).all()


def test_a_files_size_is_its_own(file: str):
    assert "leave it out" in refusal_message(f"dino@{file}?size=base")


def test_sizes_are_those_known():
    upstream = create("dino?size=base@random")
    assert (upstream.layers, upstream.dim, upstream.hop, upstream.window) == (5, 1280, 320, 80)
    assert create("dino?size=mini@random").network.shape == SIZES["mini"].shape
    assert "did you mean 'base'" in refusal_message("dino?size=bas@random")
    assert "needs its checkpoint" in refusal_message("dino")
    with pytest.raises(UpstreamError, match="no size 'large' of dino"):
        method("large")


def test_the_contract_holds():
    assert [f"{each.name}: {each.detail}" for each in check_contract(tiny()) if not each.ok] == []


@torch.inference_mode()
def test_a_clips_embedding_does_not_depend_on_its_batch():
    upstream, clips = tiny(), [drawn_clip(seconds) for seconds in CLIPS]
    lengths = torch.tensor([len(clip) for clip in clips])
    waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
    together = upstream.summarize(waveforms, lengths)
    for row, clip in enumerate(clips):
        alone = upstream.summarize(clip[None], lengths[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4 * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize("hop", [1, 2, 4, 8, 16])
def test_every_stage_is_brought_to_one_pace(hop: int):
    long = torch.tensor([11, 5])  # mel frames
    frames, counts, wanted = drawn("frames", 2, 3, -(-11 // hop)), -(-long // hop), -(-long // 2)
    for row, count in enumerate(counts.tolist()):
        frames[row, :, count:] = 0
    found = resample_frames(frames, counts, hop, wanted)
    assert found.shape == (2, 3, 6)
    for row, count in enumerate(long.tolist()):
        for t in range(6):
            covered = range(2 * t, min(2 * t + 2, count), max(1, hop))
            parts = [frames[row, :, mel // hop] for mel in covered]
            torch.testing.assert_close(found[row, :, t], sum(parts) / len(parts) if parts else torch.zeros(3))


def test_the_loss_and_centre_are_hyperions():
    found, center = [], torch.zeros(1, 24)
    for turn in range(3):
        guess, target = drawn(f"student {turn}", 18, 24), drawn(f"teacher {turn}", 6, 24)
        aims = ((target - center) / 0.04).softmax(1)
        found.append(float(dino_loss(guess / 0.1, aims, 3)))
        center = 0.9 * center + 0.1 * target.mean(0, keepdim=True)
    np.testing.assert_allclose(found, stored["losses"], rtol=1e-5)
    np.testing.assert_allclose(center, stored["center"], atol=1e-6)


def test_the_loss_is_that_of_a_slow_loop_over_crops():
    guess, aims = drawn("guess", 6 * 5, 7), drawn("aims", 2 * 5, 7).softmax(1)
    terms = []
    for large in range(2):
        for crop in range(6):
            if crop != large:
                for clip in range(5):
                    told_of = torch.softmax(guess[crop * 5 + clip].double(), 0).log()
                    terms.append(-float((aims[large * 5 + clip].double() * told_of).sum()))
    assert float(dino_loss(guess, aims, 5)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_the_head_is_hyperions():
    head = ProjectionHead(16, 32, 8, 24)
    state = {name: 0.5 * drawn(name, *each.shape) for name, each in head.state_dict().items()}
    head.load_state_dict(state | {"last_layer.weight_g": torch.ones(24, 1)})
    np.testing.assert_allclose(head(drawn("head in", 5, 16)).detach(), stored["head"], atol=1e-6)
    assert [name for name, each in head.named_parameters() if not each.requires_grad] == ["last_layer.weight_g"]


def test_entropy_is_in_nats():
    assert float(entropy(torch.full((8,), 1 / 8))) == pytest.approx(math.log(8))
    assert float(entropy(torch.tensor([1.0, 0.0]))) == 0


def tiny_method(size: Any = SIZE) -> DinoPretraining:
    torch.manual_seed(3)
    return DinoPretraining(size, SYNTHETIC, {})


def clips(number: int = 4, samples: int = 8000) -> AudioBatch:
    return AudioBatch(0.1 * drawn("clips", number, samples), torch.full((number,), samples))


def test_the_teacher_is_what_its_momentum_makes_of_the_student():
    learner = tiny_method(replace(SIZE, momentum=0.9))
    before = {name: each.clone() for name, each in learner.teacher.named_parameters()}
    with torch.no_grad():
        for each in learner.student.parameters():
            each.add_(1.0)
    learner.stepped(0.25)
    momentum = 1 - 0.1 * (math.cos(math.pi * 0.25) + 1) / 2
    own = dict(learner.student.named_parameters())
    for name, each in learner.teacher.named_parameters():
        torch.testing.assert_close(each, momentum * before[name] + (1 - momentum) * own[name])
    assert not any(each.requires_grad for each in learner.teacher.parameters())


def test_the_loss_of_a_step_is_that_of_the_crops_it_draws(monkeypatch: pytest.MonkeyPatch):
    learner, drawn_crops = tiny_method().eval(), []
    own = DinoPretraining.segments
    monkeypatch.setattr(
        DinoPretraining, "segments", lambda self, *args: drawn_crops.append(own(self, *args)) or drawn_crops[-1]
    )
    learner.teacher.load_state_dict(drawn_state(learner.teacher.state_dict()))
    torch.manual_seed(0)
    learner.center += 0.1 * drawn("center", 1, 24)
    center = learner.center.clone()
    step = learner(clips(), 0.9)
    (large, small), both = drawn_crops, (learner.student, learner.teacher)
    assert [len(mel) for mel, _ in (large, small)] == [8, 16]
    logits = [part.head(part.backbone.embedding(*crops)) for part in both for crops in (large, small)]
    guess, target = torch.cat(logits[:2]) / 0.1, logits[2]
    aims = ((target - center) / 0.04).softmax(1)
    torch.testing.assert_close(step.terms["loss"], dino_loss(guess, aims, 4))
    torch.testing.assert_close(learner.center, 0.9 * center + 0.1 * target.mean(0, keepdim=True))
    torch.testing.assert_close(step.vectors, learner.student.backbone.embedding(*large))


def test_the_last_layer_rests_at_first():
    learner = tiny_method()
    for done, expected in ((0.0, False), (0.39, False), (0.4, True)):
        learner.zero_grad()
        learner(clips(), done).terms["loss"].backward()
        assert (learner.student.head.last_layer.weight_v.grad is not None) == expected
        assert learner.student.head.mlp[0].weight.grad.any()
        assert learner.student.backbone.encoder_net.in_block.conv.weight.grad.any()


def test_crops_are_augmented_as_often_as_the_size_says():
    batch, lengths = clips(), clips().lengths
    clean = without_mean(*HyperionMel()(batch.waveforms, lengths))
    for shares in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        found, _ = tiny_method(replace(SIZE, augmented=shares)).segments(batch, 60.0, 1)
        changed = (found != clean).flatten(1).any(1)
        assert changed.tolist() == [any(shares)] * len(lengths)


def test_crops_differ_and_lie_within_their_clip():
    learner = tiny_method()
    batch = AudioBatch(0.1 * drawn("clips", 2, 16_000), torch.tensor([16_000, 3000]))
    mel, frames = learner.segments(batch, 0.4, 3)
    assert mel.shape == (6, 40, 80)
    assert frames.tolist() == [40, 19] * 3
    assert not torch.equal(mel[0], mel[2])
    assert not mel[1, 19:].any()
    assert mel.isfinite().all()


def test_training_repeats_and_resumes_bit_for_bit():
    def batches(first: int):
        return (AudioBatch(0.1 * drawn(f"step {n}", 4, 8000), torch.full((4,), 8000)) for n in range(first, 6))

    plan, states = Schedule(RECIPE, save_every=0.0, report_every=1e9), []
    whole = tiny_method()
    history = fit(whole, batches, plan, save=states.append)
    again = tiny_method()
    halfway = next(state for state in states if state.facts["step"] == 3)
    assert fit(again, batches, plan, state=halfway)[-1] == history[-1]
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in whole.state_dict().items())


def test_what_is_exported_is_the_teacher():
    learner = tiny_method()
    with torch.no_grad():
        learner.student.backbone.encoder_net.in_block.conv.weight.add_(1.0)
    found = learner.exported()
    assert torch.equal(
        found["backbone.encoder_net.in_block.conv.weight"], learner.teacher.backbone.encoder_net.in_block.conv.weight
    )
    assert found[CAPPED] == 1
    assert not [name for name in found if "head" in name]


def test_a_mini_file_would_be_small():
    assert sum(each.numel() for each in method("mini").exported().values()) <= 1_400_000


def test_an_empty_name_of_a_folder_is_no_wish_for_synthetic_sounds(tmp_path: Path):
    with pytest.raises(UpstreamError, match="noises of dino is ''"):
        method("mini", noises="")


def test_folders_of_noises_and_rooms_are_told_by_their_digests(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.ones(1600) / 2, 16_000)
    learner = method("mini", noises=str(tmp_path), rooms=str(tmp_path))
    assert learner.origin.keys() == {"noises", "rooms"}
    assert method("mini").origin == {}
    assert len(learner.origin["noises"]) == 64
    with pytest.raises(UpstreamError, match="noises of dino is 'nowhere', which is no folder"):
        method("mini", noises="nowhere")


def test_networks_in_training_take_all_of_a_clip_and_others_what_is_speech():
    clip = drawn_clip(1.7)
    clip[:8000] *= 1e-6
    network, lengths = tiny().network, torch.tensor([len(clip)])
    mel, frames = network.features(clip[None], lengths)
    with torch.inference_mode():
        whole = network.embedding(mel, frames)
        assert not torch.allclose(network(clip[None], lengths), whole, rtol=0.01)
    network.train()
    for module in network.modules():
        module.training = module is network  # norms as they are
    torch.testing.assert_close(network(clip[None], lengths), whole)
    network(clip[None], lengths).sum().backward()
    assert network.encoder_net.in_block.conv.weight.grad.any()
