from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import upstreams
from tests.upstreams import s3prl_spectral
from upstreams.base import Upstream, UpstreamError, fingerprint
from upstreams.contract.check import check_contract
from upstreams.contract.probe_signals import sounds
from upstreams.families.s3prl_entries import s3prl_entries

HALF = (
    "?feature_selection=hidden_states&window_secs=0.5&stride_secs=0.5"  # length and step, in seconds, of AST's windows
)
CASES: dict[str, tuple[Any, str, tuple[int, int, int, int]]] = {  # name: file, options, (hop, window, layers, dim)
    "apc": (s3prl_spectral.apc, "", (160, 400, 3, 16)),
    "vq_apc_960hr": (s3prl_spectral.vq_apc, "", (160, 400, 3, 16)),
    "npc_local": (s3prl_spectral.npc, "", (160, 400, 5, 16)),
    "tera": (s3prl_spectral.tera, "", (160, 1, 4, 24)),
    "mockingjay_local": (s3prl_spectral.mockingjay, "", (160, 1, 4, 24)),
    "audio_albert": (s3prl_spectral.audio_albert, "", (160, 1, 4, 24)),
    "byol_a_512": (s3prl_spectral.byol_a, "?stride_secs=0.5", (8_000, 1, 1, 512)),
    "byol_a_1024": (partial(s3prl_spectral.byol_a, size=1024), "", (16_000, 1, 1, 1024)),
    "byol_a_2048": (partial(s3prl_spectral.byol_a, size=2048), "", (16_000, 1, 1, 2048)),
    "byol_s_default": (s3prl_spectral.byol_s, "?hop_secs=1.0&window_secs=0.5", (16_000, 1, 1, 2048)),
    "ssast_patch_base": (s3prl_spectral.ssast, "", (1_600, 1, 2, 12 * 24)),
    "ssast_frame_base": (s3prl_spectral.ssast_frame, "?window_secs=2", (160, 1, 2, 24)),
    "ast": (s3prl_spectral.ast, HALF, (1_600, 1, 2, 12 * 768)),
    "mae_ast_patch": (s3prl_spectral.mae_ast, "", (2_560, 2_800, 2, 8 * 24)),
    "mae_ast_frame": (s3prl_spectral.mae_ast_frame, "", (320, 560, 2, 24)),
    "decoar": (s3prl_spectral.decoar, "", (160, 400, 1, 32)),
    "decoar2": (s3prl_spectral.decoar2, "", (320, 400, 3, 32)),
    "passt_base": (s3prl_spectral.passt, "?stride_secs=0.25", (4_000, 1, 1, 527 + 24)),
    "fbank": (None, "", (160, 400, 1, 240)),
    "fbank_no_cmvn": (None, "", (160, 400, 1, 240)),
    "mfcc": (None, "", (160, 400, 1, 39)),
    "mel": (None, "", (160, 1, 1, 80)),
    "linear": (None, "", (160, 1, 1, 201)),
    "spectrogram": (None, "", (160, 400, 1, 257)),
    "baseline_local": ("baseline/mfcc.yaml", "", (160, 400, 1, 39)),
    "stft_mag": ("log_stft/log_stft_mag.yaml", "", (320, 1, 1, 257)),
}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        s3prl_spectral.shrink(monkeypatch)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that creates a family's checkpoint once and returns its path."""
    folder, paths = tmp_path_factory.mktemp("checkpoints"), {}

    def path_of(name: str) -> Path | None:
        make, reason = CASES[name][0], s3prl_entries()[name].reason
        if reason:
            pytest.skip(reason)
        if isinstance(make, str):
            return Path(s3prl_spectral.module("apc").__file__).parent.parent / make
        if make and name not in paths:
            torch.manual_seed(len(name))
            with pytest.MonkeyPatch.context() as monkeypatch:
                s3prl_spectral.shrink(monkeypatch, width=768 if name == "ast" else 24)
                paths[name] = make(folder / f"{name}.pt")
        return paths.get(name)

    return path_of


def create(name: str, path: Path | None, options: str | None = None) -> Upstream:
    with pytest.MonkeyPatch.context() as monkeypatch:
        s3prl_spectral.shrink(monkeypatch, width=768 if name == "ast" else 24)
        return upstreams.create(f"s3prl:{name}" + (f"@{path}" if path else "") + (options or CASES[name][1]))


@pytest.mark.parametrize("name", CASES)
def test_a_released_checkpoint_keeps_the_contract(name: str, checkpoint: Any) -> None:
    upstream = create(name, checkpoint(name))
    assert (upstream.hop, upstream.window, upstream.layers, upstream.dim) == CASES[name][2]
    faults = [finding for finding in check_contract(upstream) if not finding.ok]
    assert not faults


@pytest.mark.parametrize("name", CASES)
def test_the_layer_sum_is_that_of_s3prls_own_featurizer(name: str, checkpoint: Any) -> None:
    upstream = create(name, checkpoint(name))
    expert, interfaces = upstream.expert, s3prl_spectral.module("interfaces")
    clip = sounds(upstream, 2.0)[0]
    with torch.no_grad():
        output = expert([clip])
        featurizer = interfaces.Featurizer(expert, "hidden_states", upstream_device="cpu")
        if upstream.layers > 1:
            featurizer.weights.copy_(torch.linspace(-1, 1, upstream.layers))
        weights = torch.softmax(torch.linspace(-1, 1, upstream.layers), 0)
        (expected,) = featurizer([clip], output)
        frames, counts = upstream(clip[None], torch.tensor([len(clip)]))
    ours = (frames[0] * weights[:, None]).sum(1)
    both = min(int(counts), len(expected))
    assert abs(int(counts) - len(expected)) < 5  # s3prl tolerates such a difference
    torch.testing.assert_close(ours[:both], expected[:both], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if callable(case[0])])
def test_a_weight_of_another_name_is_refused_by_name(name: str, checkpoint: Any, tmp_path: Path) -> None:
    content = torch.load(checkpoint(name), weights_only=False)
    state = max(states(content), key=len)
    old = next(key for key in state if key.endswith(("weight", "weight_ih_l0")))
    state[f"{old}_other"] = state.pop(old)
    torch.save(content, tmp_path / "renamed.pt")
    with pytest.raises(UpstreamError, match=r"weight"):
        create(name, tmp_path / "renamed.pt")


def states(content: Any) -> list[dict[str, Any]]:
    """Return all dicts with tensors in nested dicts."""
    if not isinstance(content, dict):
        return []
    outer = [content] if any(isinstance(value, torch.Tensor) for value in content.values()) else []
    return outer + [state for value in content.values() for state in states(value)]


def test_byol_s_gives_finite_features_for_silence_of_any_length(checkpoint: Any) -> None:
    upstream = create("byol_s_default", checkpoint("byol_s_default"))
    for samples in (400, 8_000, 16_000, 24_000):
        frames, _ = upstream(torch.zeros(1, samples), torch.tensor([samples]))
        assert frames.isfinite().all(), samples


def test_two_builds_from_one_file_have_one_fingerprint(checkpoint: Any, tmp_path: Path) -> None:
    for name in ("ssast_patch_base", "tera"):
        path = checkpoint(name)
        moved = tmp_path / f"{name}.moved"
        moved.write_bytes(path.read_bytes())
        assert fingerprint(create(name, path)) == fingerprint(create(name, moved))


def test_asts_class_token_has_a_random_head_and_is_refused(checkpoint: Any) -> None:
    with pytest.raises(UpstreamError, match="feature_selection=hidden_states"):
        create("ast", checkpoint("ast"), "?feature_selection=cls")


def test_an_entry_that_cannot_run_says_why() -> None:
    for name, reason in {"vggish": "resampy", "byol_s_cvt": "einops", "mos_apc": "no encoder"}.items():
        if s3prl_entries()[name].reason:
            with pytest.raises(UpstreamError, match=reason):
                upstreams.create(f"s3prl:{name}")
