"""SSAST: its encoder beside its authors' own, what checkpoints it takes, and its objective beside the paper's formulas.

`data/ssast.npz` holds what the authors' module made of weights and sounds that `drawn_state` and `drawn_clip` draw
again (a1a3eecb of YuanGongND/ssast with timm 0.4.5): every block's frames, and both losses for a mask.
"""

from __future__ import annotations

import importlib
import math
import sys
import zlib
from collections import abc
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.upstreams.models import padded, refusal_message, relative_error
from upstreams import create
from upstreams.base import UpstreamError, fingerprint
from upstreams.contract.check import check_contract
from upstreams.precision import with_precision
from upstreams.pretraining.methods import AudioBatch, Recipe
from upstreams.seeds.ssast import MEAN, STD, MelImages, Ssast, SsastPretraining, SsastSize, Transformer, method
from upstreams.torchaudio_guard import guard

guard()

STORED = Path(__file__).parents[1] / "data" / "ssast.npz"
SECONDS = (0.61, 1.7, 11.3)
PATCHES = {"patch": (16, 16), "frame": (128, 2)}
SMALL = SsastSize(64, 2, 2, 16, 16, 96)
SMALL_FRAME = SMALL._replace(height=128, width=4)
RECIPE = Recipe(steps=10, batch=2, seconds=1.0, lr=1e-3)


def drawn(name: str, *shape: int) -> Tensor:
    """Normal numbers that the name alone decides."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def drawn_state(variant: str) -> dict[str, Tensor]:
    """A checkpoint of the tiny size in the authors' format, biases and norms random too."""
    state = method("tiny", variant=variant).exported()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = 0.05 * drawn(name, *tensor.shape) + (1.0 if "norm" in name and "weight" in name else 0.0)
    return state


def drawn_clip(seconds: float) -> Tensor:
    samples = round(16_000 * seconds)
    swell = torch.sin(torch.arange(samples) / 1000.0).abs()
    return 0.1 * swell * drawn(f"clip of {seconds} s", samples) + 0.02


def drawn_mask(clips: int, tokens: int, number: int) -> Tensor:
    order = drawn("mask", clips, tokens).argsort(1)
    return torch.zeros(clips, tokens, dtype=torch.bool).scatter_(1, order[:, :number], True)


def thinned(frames: Tensor) -> Tensor:
    """What of frames (T, L, D) is stored."""
    return frames[:: max(1, len(frames) // 8), :, ::64]


@pytest.fixture(scope="module")
def stored() -> Any:
    return np.load(STORED)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints as the authors write them, by variant."""
    folder = tmp_path_factory.mktemp("ssast")

    def path(variant: str) -> Path:
        file = folder / f"{variant}.pth"
        if not file.exists():
            torch.save(drawn_state(variant), file)
        return file

    return path


def encoded(upstream: Any, *clips: Tensor) -> list[Tensor]:
    """Frames (T, L, D) of each clip, all in one batch with NaN in its padding."""
    with torch.no_grad():
        frames, counts = upstream(*padded(clips, 500))
    return [row[:count] for row, count in zip(frames, counts.tolist(), strict=True)]


@pytest.mark.parametrize("variant", PATCHES)
def test_every_block_gives_what_the_authors_own_gives(variant: str, release: Any, stored: Any) -> None:
    upstream = create(f"ssast@{release(variant)}")
    for seconds, frames in zip(SECONDS, encoded(upstream, *map(drawn_clip, SECONDS)), strict=True):
        assert frames.shape[1:] == (14, 192)
        assert relative_error(thinned(frames), torch.from_numpy(stored[f"{variant} {seconds}"])) < 1e-4


@pytest.mark.parametrize("variant", PATCHES)
def test_both_losses_are_the_authors_own_for_the_same_mask(variant: str, stored: Any) -> None:
    training = method("tiny", variant=variant, softmax_over="predictions", one_mask=True)
    training.load_state_dict({name[7:]: each for name, each in drawn_state(variant).items()}, strict=False)
    training.mask = lambda there: drawn_mask(2, 512, 400).view_as(there)  # type: ignore[attr-defined]
    waveforms = torch.stack([drawn_clip(10.255), drawn_clip(10.255).flip(0)])
    with torch.no_grad():
        terms = training(AudioBatch(waveforms, torch.full((2,), 164_080)), 0.0).terms
    assert float(terms["nce"]) == pytest.approx(float(stored[f"{variant} nce"]), rel=1e-5)
    assert float(terms["mse"]) == pytest.approx(float(stored[f"{variant} mse"]), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(float(terms["nce"] + 10 * terms["mse"]))


class Anything(ModuleType):
    """Stands for a package that is imported but not used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


@pytest.fixture
def s3prls() -> Iterator[ModuleType]:
    """The model that s3prl bundles, by the authors, which only an old timm builds."""
    try:
        if metadata.version("timm") != "0.4.5":
            pytest.skip("timm is not 0.4.5")
    except metadata.PackageNotFoundError:
        pytest.skip("timm is not installed")
    before = dict(sys.modules)
    for name in ("torchvision", "torchvision.transforms", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[name] = Anything(name)
    for name in ("timm.data", "timm.data.constants", "timm.data.random_erasing", "timm.data.mixup"):
        sys.modules[name] = Anything(name)
    containers = ModuleType("torch._six")
    containers.__dict__["container_abcs"] = abc
    sys.modules["torch._six"] = containers
    yield importlib.import_module("s3prl.upstream.ssast.ast_models")
    for name in [name for name in sys.modules if name not in before and ("timm" in name or "torchvision" in name)]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if sys.modules.get(name) is not module})
    sys.modules.pop("torch._six", None)
    sys.modules.pop("s3prl.upstream.ssast.ast_models", None)


@pytest.mark.parametrize(("variant", "strides"), [("patch", (10, 10)), ("frame", (128, 1))])
def test_frames_of_overlapping_patches_are_those_of_s3prls_model(
    variant: str, strides: tuple[int, int], release: Any, s3prls: Any
) -> None:
    from torchaudio.compliance import kaldi

    height, width = PATCHES[variant]
    arguments = {"fshape": height, "tshape": width, "fstride": strides[0], "tstride": strides[1], "model_size": "tiny"}
    upstream = create(f"ssast@{release(variant)}?fstride={strides[0]}&tstride={strides[1]}")
    for seconds, frames in zip(SECONDS[1:], encoded(upstream, *map(drawn_clip, SECONDS[1:])), strict=True):
        clip = drawn_clip(seconds)
        mel = kaldi.fbank(
            (clip - clip.mean())[None], htk_compat=True, window_type="hanning", num_mel_bins=128, dither=0.0
        )
        length = {"input_tdim": len(mel), "pretrain_stage": False, "load_pretrained_mdl_path": str(release(variant))}
        model = s3prls.ASTModel(**arguments, **length).eval()
        with torch.no_grad():
            states, final = model(((mel - MEAN) / (2 * STD))[None])
        rows = (128 - height) // strides[0] + 1
        wanted = torch.stack([each[0].unflatten(1, (rows, -1)).mean(1) for each in states], dim=1)
        assert relative_error(frames[:, 1:-1], wanted) < 1e-4
        torch.testing.assert_close(frames[:, -1].mean(0), final[0, 2:].mean(0), rtol=1e-4, atol=1e-4)


def test_spectrograms_are_torchaudios_of_the_clip_without_its_mean() -> None:
    from torchaudio.compliance import kaldi

    clips = [drawn_clip(0.8), 0.5 + drawn_clip(0.3)]
    given = MelImages(-5.0, 3.0)(*padded(clips, 300), 400)
    for clip, row in zip(clips, given, strict=True):
        wanted = kaldi.fbank(
            (clip - clip.mean())[None],
            htk_compat=True,
            sample_frequency=16_000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        torch.testing.assert_close(row[0, :, : len(wanted)].T, (wanted + 5.0) / 6.0, rtol=0, atol=1e-4)


def test_shorter_clips_have_the_positions_in_the_middle_and_longer_ones_all_of_them_stretched() -> None:
    encoder = Transformer(SMALL)
    with torch.no_grad():
        learned = encoder.pos_embed[0, 2:].view(8, 6, 64)
        for columns, start in ((1, 3), (2, 2), (3, 2), (5, 1), (6, 0)):
            assert torch.equal(encoder.resized(8, columns), learned[:, start : start + columns])
        places = (np.arange(9) + 0.5) * 6 / 9 - 0.5
        wanted = [[np.interp(places, range(6), line) for line in row.T.numpy()] for row in learned]
        stretched = torch.tensor(np.array(wanted)).permute(0, 2, 1).float()
        torch.testing.assert_close(encoder.resized(8, 9), stretched, rtol=0, atol=1e-6)


def test_the_middle_of_an_odd_number_of_positions_is_where_the_authors_take_it_from() -> None:
    encoder = Transformer(SMALL._replace(frames=112))
    learned = encoder.pos_embed[0, 2:].view(8, 7, 64)
    for columns, start in ((1, 3), (2, 2), (3, 2), (4, 1), (5, 1), (6, 0)):
        assert torch.equal(encoder.resized(8, columns), learned[:, start : start + columns])


def test_in_a_batch_each_clip_has_positions_by_its_own_length() -> None:
    encoder = Transformer(SMALL)
    with torch.no_grad():
        table = encoder.positions(torch.tensor([2, 9]), 8, 9)
        assert torch.equal(table[0, :, :2], encoder.resized(8, 2))
        assert torch.equal(table[1], encoder.resized(8, 9))


@pytest.mark.parametrize(
    "reference",
    [
        "ssast?size=mini&variant=patch@random",
        "ssast?size=mini&variant=frame@random",
        "ssast?size=tiny@random",
        "ssast?size=tiny&variant=frame@random",
        "ssast?size=mini&variant=patch&fstride=10&tstride=10@random",
    ],
)
def test_it_keeps_the_contract_of_an_upstream(reference: str) -> None:
    assert [finding for finding in check_contract(create(reference)) if not finding.ok] == []


def test_the_mean_of_the_last_layer_is_the_mean_of_all_patches_after_the_final_norm() -> None:
    upstream = create("ssast?size=mini&variant=patch@random")
    clip = drawn_clip(1.0)
    seen: list[Tensor] = []
    upstream.v.norm.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    with torch.no_grad():
        summary = upstream.summarize(clip[None], torch.tensor([len(clip)]))
    torch.testing.assert_close(summary[0, -1], seen[0][0, 2:].mean(0))


@pytest.mark.parametrize("variant", PATCHES)
def test_fine_tuning_reaches_every_weight(variant: str) -> None:
    upstream = create(f"ssast?size=mini&variant={variant}@random").train()
    frames, _ = upstream(*padded([drawn_clip(0.9), drawn_clip(0.3)], 0))
    (frames * drawn("weights of layers and channels", *frames.shape)).sum().backward()
    assert [name for name, each in upstream.named_parameters() if each.grad is None or not each.grad.any()] == []


@pytest.mark.parametrize("variant", PATCHES)
def test_reduced_precision_changes_features_little_and_the_front_end_not_at_all(variant: str) -> None:
    upstream = create(f"ssast?size=tiny&variant={variant}@random")
    waveforms, lengths = padded([drawn_clip(0.9), drawn_clip(0.3)], 500)
    with torch.no_grad():
        full, half = upstream(waveforms, lengths), with_precision("bf16", upstream)(waveforms, lengths)
        plain = upstream.images(waveforms, lengths, upstream.window)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(upstream.images(waveforms, lengths, upstream.window), plain)
    assert half.frames.dtype == torch.float32
    assert 1e-5 < float((half.frames - full.frames).norm() / full.frames.norm()) < 0.03


@pytest.mark.parametrize("size", [SMALL, SMALL_FRAME, SMALL._replace(class_tokens=1)])
@pytest.mark.parametrize("ending", [".safetensors", ".pth", "half"])
def test_what_is_exported_is_an_upstream_of_the_same_weights(size: SsastSize, ending: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    training = SsastPretraining(size, RECIPE)
    path = tmp_path / f"out{ending if ending.startswith('.') else '.safetensors'}"
    state = {name: each.half().float() for name, each in training.exported().items() if each.is_floating_point()}
    training.load_state_dict({name[7:]: each for name, each in state.items()}, strict=False)
    exported = training.exported()
    if ending == ".pth":
        torch.save({name[7:]: each for name, each in exported.items()}, path)
    else:
        half = {name: each.half() if each.is_floating_point() else each for name, each in exported.items()}
        save_file({name: each.contiguous() for name, each in (half if ending == "half" else exported).items()}, path)
    upstream = create(f"ssast@{path}")
    direct = Ssast(size)
    direct.v.load_state_dict(training.v.state_dict())
    clips = [drawn_clip(0.7), drawn_clip(1.3)]
    for given, wanted in zip(encoded(upstream, *clips), encoded(direct.eval(), *clips), strict=True):
        assert torch.equal(given, wanted)
    assert list(upstream.origin) == [path.name]


MANY = {"module.v.pos_embed": torch.zeros(1, 2 + 128 * 96, 64)}  # as many positions as patches of one value


def saved(state: dict[str, Any], tmp_path: Path) -> str:
    torch.save(state, tmp_path / "file.pth")
    return f"ssast@{tmp_path / 'file.pth'}"


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)  # not that of random twins
    return SsastPretraining(SMALL, RECIPE).exported()


def test_a_random_twin_has_the_files_shapes_and_nothing_of_its_weights(state: Any, tmp_path: Path) -> None:
    clip = drawn_clip(0.5)
    reference = saved(state, tmp_path)
    trained, twin = create(reference), create(f"{reference}@random")
    assert {name: each.shape for name, each in trained.state_dict().items()} == {
        name: each.shape for name, each in twin.state_dict().items()
    }
    assert not torch.allclose(encoded(trained, clip)[0], encoded(twin, clip)[0], atol=1e-3)
    other = saved({name: 2 * each if each.is_floating_point() else each for name, each in state.items()}, tmp_path)
    assert torch.equal(encoded(create(f"{other}@random"), clip)[0], encoded(twin, clip)[0])


def test_heads_for_images_and_for_pre_training_may_be_left_over(state: Any, tmp_path: Path) -> None:
    plain = create(saved(state, tmp_path))
    for name in ("cpredlayer.0.weight", "gpredlayer.2.bias", "mask_embed"):
        del state[f"module.{name}"]
    state |= {"module.v.head.weight": torch.zeros(5, 64), "module.v.head_dist.bias": torch.zeros(5)}
    assert torch.equal(*(encoded(each, drawn_clip(0.5))[0] for each in (plain, create(saved(state, tmp_path)))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"module.v.blocks.1.mlp.fc1.bias": None}, "missing: blocks.1.mlp.fc1.bias"),
        ({"module.v.blocks.0.attn.qkv.bias": torch.zeros(5)}, "of another shape: blocks.0.attn.qkv.bias"),
        ({"module.v.blocks.0.adapter": torch.zeros(5)}, "of no use: blocks.0.adapter"),
        ({"module.v.blocks.7.norm1.bias": torch.zeros(64)}, "of no use: blocks.7.norm1.bias"),
        ({"module.v.norm.weight": torch.full((64,), math.nan)}, "not finite: norm.weight"),
        ({"module.v.norm.weight": torch.full((64,), 1e300, dtype=torch.float64)}, "not finite: norm.weight"),
        ({"module.mlp_head.1.weight": torch.zeros(3, 64)}, "of no use: mlp_head.1.weight"),
        ({f"module.v.blocks.{number}.x": torch.zeros(1) for number in range(1001)}, "has 1001 blocks"),
        ({"module.v.norm.weight": torch.ones(64, dtype=torch.int64)}, "no floating-point numbers at norm.weight"),
        ({"module.p_input_tdim": None}, "lacks p_input_tdim"),
        ({"module.p_input_tdim": torch.tensor(1024)}, "has 50 positions"),
        ({"module.p_input_tdim": torch.tensor(math.nan)}, "for nan frames of 128 mel bands"),
        ({"module.p_input_tdim": torch.tensor(1j)}, "for 1j frames of 128 mel bands"),
        ({"module.p_input_tdim": torch.tensor([96, 96])}, "by the shapes {'p_input_fdim': (), 'p_input_tdim': (2,)"),
        ({"module.p_input_fdim": torch.tensor(64)}, "64 mel bands"),
        ({"module.v.pos_embed": torch.zeros(50, 64)}, "no checkpoint of SSAST"),
        (
            {"module.v.patch_embed.proj.weight": torch.zeros(64, 1, 20, 16)},
            "patches of 16 by 20, and has 2 blocks of 64 channels",
        ),
        ({"module.v.patch_embed.proj.weight": torch.zeros(64 * 10**4, 1, 1, 1)}, "has 50 positions"),
        ({"module.v.patch_embed.proj.weight": torch.zeros(64 * 10**4, 1, 1, 1), **MANY}, "of another shape"),
    ],
)
def test_weights_that_do_not_all_arrive_are_refused_by_name(
    change: dict[str, Any], words: str, state: Any, tmp_path: Path
) -> None:
    changed = {name: each for name, each in (state | change).items() if each is not None}
    reference = saved(changed, tmp_path)
    assert words in refusal_message(reference)
    assert words in refusal_message(f"{reference}@random")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("ssast", "needs its checkpoint: write ssast@FILE"),
        ("ssast?size=huge@random", "no size 'huge' of ssast; it takes: mini, tiny"),
        ("ssast?size=bass@random", "no size 'bass' of ssast; did you mean 'base'?"),
        ("ssast?size=@random", "no size ''"),
        ("ssast?variant=square@random", "no variant 'square' of ssast; it takes: patch, frame"),
        ("ssast?variant=frames@random", "did you mean 'frame'?"),
        ("ssast?size=tiny&tstride=17@random", "tstride of ssast is 17; it may be 1 to 16"),
        ("ssast?size=tiny&fstride=-1@random", "fstride of ssast is -1"),
        ("ssast?size=tiny&std=0@random", "mean and std of ssast are -4.2677393 and 0;"),
        ("ssast?size=tiny&std=1e-300@random", "and 1e-300;"),
        ("ssast?size=tiny&mean=NaN@random", "are nan and"),
        ("ssast?size=tiny&mean=1e300@random", "are 1e+300 and"),
    ],
)
def test_references_that_ask_for_what_there_is_not_are_refused(reference: str, words: str) -> None:
    assert words in refusal_message(reference)


def test_a_file_without_blocks_is_refused(state: Any, tmp_path: Path) -> None:
    blockless = {name: each for name, each in state.items() if ".blocks." not in name}
    assert "has 0 blocks" in refusal_message(saved(blockless, tmp_path))


def test_a_size_beside_a_checkpoint_is_refused_as_the_file_has_its_own(state: Any, tmp_path: Path) -> None:
    assert "are those of the file" in refusal_message(f"{saved(state, tmp_path)}?size=tiny")


def test_normalisation_and_strides_are_part_of_the_fingerprint(state: Any, tmp_path: Path) -> None:
    reference = saved(state, tmp_path)
    references = [reference, f"{reference}?mean=-6.6", f"{reference}?std=5.3", f"{reference}?tstride=8"]
    assert len({fingerprint(create(each)) for each in references}) == 4


@pytest.mark.parametrize(
    ("size", "variant"), [("mini", "frame"), ("mini", "patch"), ("tiny", "frame"), ("tiny", "patch")]
)
def test_what_a_recipe_shows_of_a_clip_fills_the_positions(size: str, variant: str) -> None:
    training = method(size, variant=variant)
    samples = round(16_000 * training.recipe.seconds)
    images, counts = training.seen(AudioBatch(0.1 * torch.randn(1, samples), torch.tensor([samples])))  # type: ignore
    assert counts.tolist() == [training.v.grid[1]]  # type: ignore[union-attr, index]
    assert images.shape[3] == training.size.frames  # type: ignore[union-attr]


def ragged() -> AudioBatch:
    torch.manual_seed(0)
    waveforms = 0.1 * torch.randn(3, 15_000)
    lengths = torch.tensor([15_000, 9_000, 300])
    waveforms[torch.arange(15_000) >= lengths[:, None]] = math.nan
    return AudioBatch(waveforms, lengths)


def by_the_paper(training: SsastPretraining, batch: AudioBatch, over: str) -> tuple[float, float]:
    """Both terms clip by clip and patch by patch, for the mask that is drawn from seed 7."""
    torch.manual_seed(7)
    images, counts = training.seen(batch)
    output, mask, *_ = training.guessed(images, counts)
    nce, mse = [], []
    for clip in range(len(counts)):
        chosen = mask[clip].nonzero()[:, 0].tolist()
        columns, width, height = mask.shape[1] * training.size.height // 128, training.size.width, training.size.height
        cells = {i: (i // columns * height, i % columns * width) for i in chosen}
        x = torch.stack([images[clip, 0, f : f + height, t : t + width].flatten() for f, t in cells.values()]).double()
        c, r = training.cpredlayer(output[clip, chosen]).double(), training.gpredlayer(output[clip, chosen]).double()
        for i in range(len(chosen)):
            candidates = [float(c[i] @ x[j] if over == "targets" else c[j] @ x[i]) for j in range(len(chosen))]
            nce.append(-math.log(math.exp(candidates[i]) / sum(map(math.exp, candidates))))
            mse.append(float(((r[i] - x[i]) ** 2).mean()))
    return sum(nce) / len(nce), sum(mse) / len(mse)


@pytest.mark.parametrize("size", [SMALL, SMALL_FRAME])
@pytest.mark.parametrize("over", ["targets", "predictions"])
def test_both_terms_are_those_of_the_papers_formulas(size: SsastSize, over: str) -> None:
    torch.manual_seed(1)
    training = SsastPretraining(size, RECIPE, masked=0.6, one_mask=True, softmax_over=over)
    with torch.no_grad():
        for parameter in training.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        batch = ragged()
        nce, mse = by_the_paper(training, batch, over)
        torch.manual_seed(7)
        terms = training(batch, 0.0).terms
    assert nce > 0.1
    assert float(terms["nce"]) == pytest.approx(nce, rel=1e-4)
    assert float(terms["mse"]) == pytest.approx(mse, rel=1e-4)


def test_the_two_softmaxes_are_two_losses() -> None:
    losses = []
    for over in ("targets", "predictions"):
        torch.manual_seed(1)
        training = SsastPretraining(SMALL, RECIPE, softmax_over=over)
        losses.append(float(training(ragged(), 0.0).terms["nce"].detach()))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("one_mask", "passes"), [(True, 1), (False, 2)])
def test_each_term_has_a_mask_of_its_own_unless_they_are_to_share_one(one_mask: bool, passes: int) -> None:
    training = SsastPretraining(SMALL, RECIPE, one_mask=one_mask)
    masks: list[Tensor] = []
    draw = training.mask
    training.mask = lambda there: masks.append(draw(there)) or masks[-1]  # type: ignore
    training(ragged(), 0.0)
    assert len(masks) == passes
    assert one_mask or not torch.equal(*masks)
    assert [int(mask[0].sum()) for mask in masks] == [round(8 * 5 * 400 / 512)] * passes


def test_the_halves_of_the_objective_are_its_terms_alone_and_train_no_other_predictor() -> None:
    for objective, term, idle in (("discriminative", "nce", "gpredlayer"), ("generative", "mse", "cpredlayer")):
        training = SsastPretraining(SMALL, RECIPE, objective=objective)
        terms = training(ragged(), 0.0).terms
        assert torch.equal(terms["loss"], terms[term])
        assert ("nce" in terms) != ("mse" in terms)
        frozen = {name for name, each in training.named_parameters() if not each.requires_grad}
        assert frozen == {f"{idle}.{each}" for each in ("0.weight", "0.bias", "2.weight", "2.bias")}


def test_every_weight_that_is_trained_has_a_gradient() -> None:
    training = SsastPretraining(SMALL, RECIPE)
    training(ragged(), 0.0).terms["loss"].backward()
    names = [name for name, each in training.named_parameters() if each.grad is None or not bool(each.grad.any())]
    assert names == []


def test_terms_are_single_precision_and_about_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    training = SsastPretraining(SMALL, RECIPE)
    plain = training(ragged(), 0.0).terms["loss"].detach()
    with torch.autocast("cpu", torch.bfloat16):
        reduced = training(ragged(), 0.0).terms
    assert {each.dtype for each in reduced.values()} == {torch.float32}
    assert float(reduced["loss"].detach()) == pytest.approx(float(plain), rel=0.02)
    reduced["loss"].backward()


def test_it_learns_to_recognise_and_reconstruct_what_is_masked() -> None:
    torch.manual_seed(0)
    training = SsastPretraining(SMALL_FRAME, RECIPE, masked=0.5, one_mask=True)
    optimizer = torch.optim.AdamW(training.parameters(), lr=2e-3)
    time = torch.arange(15_760) / 16_000
    sweep = torch.stack([0.3 * torch.sin(2000 * (1 + time * rate) * time) for rate in (1.0, 2.0, 4.0, 6.0)])
    batch, found = AudioBatch(sweep, torch.full((4,), 15_760)), []
    for _ in range(60):
        terms = training(batch, 0.0).terms
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        found.append({name: float(each.detach()) for name, each in terms.items()})
    assert found[-1]["nce"] < 0.8 * found[0]["nce"]
    assert found[-1]["mse"] < 0.5 * found[0]["mse"]
    assert found[-1]["accuracy"] > found[0]["accuracy"] + 0.2


def test_weights_start_as_the_authors_do() -> None:
    torch.manual_seed(0)
    weights = dict(method("tiny").named_parameters())
    for name in (
        "v.cls_token",
        "v.dist_token",
        "v.pos_embed",
        "v.blocks.3.attn.qkv.weight",
        "v.blocks.9.mlp.fc2.weight",
    ):
        assert 0.017 < float(weights[name].detach().std()) < 0.023, name
    assert 0.8 < float(weights["mask_embed"].detach().std()) * math.sqrt(192) < 1.2
    assert not bool(weights["v.blocks.3.mlp.fc1.bias"].any())
    for name, inputs in (("v.patch_embed.proj", 256), ("cpredlayer.0", 192), ("gpredlayer.2", 192)):
        for part in ("weight", "bias"):  # torch's own, uniform
            largest = float(weights[f"{name}.{part}"].detach().abs().max()) * math.sqrt(inputs)
            assert 0.95 < largest <= 1.0, name


@torch.no_grad()
@pytest.mark.parametrize("variant", PATCHES)
def test_tokens_of_the_mini_size_first_attend_to_those_near_them_in_time(variant: str) -> None:
    torch.manual_seed(0)
    encoder = create(f"ssast?size=mini&variant={variant}@random").v
    rows, columns = encoder.grid
    places = encoder.blocks[0].norm1(encoder.resized(rows, columns)[0])
    query, key, _ = encoder.blocks[0].attn.qkv(places).view(columns, 3, 2, 64).permute(1, 2, 0, 3)
    weights = (query @ key.transpose(1, 2) / 8).softmax(2)  # (heads, columns, columns)
    distance = (torch.arange(columns)[:, None] - torch.arange(columns)).abs()
    assert bool((distance.gather(1, weights.argmax(2).T) <= 1).all())
    assert float(weights[:, distance <= 2].mean()) > 4 * float(weights[:, distance >= 6].mean())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "both"}, "no objective 'both'"),
        ({"softmax_over": "rows"}, "softmax_over"),
        ({"one_mask": "perhaps"}, "one_mask of ssast is 'perhaps'"),
        ({"masked": 0}, "masked of ssast is 0"),
        ({"masked": 1.5}, "above 0 and at most 1"),
        ({"variant": "frames"}, "no variant 'frames'"),
        ({"size": "giant"}, "no size 'giant'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UpstreamError, match=words):
        method(**{"size": "mini", **options})
