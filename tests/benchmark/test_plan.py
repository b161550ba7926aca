"""What there is to do is known by content, before any audio is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.corpora import Trial
from benchmark.errors import UserError
from benchmark.manifest import Clip, Manifest, prepare
from benchmark.plan import Card, Setup, Sweep, describe, expand, extractions, fixed
from benchmark.tasks import Task
from tests.benchmark.encoders import write_encoder

CARD = Card("fbank", "f" * 64, "fp32", 16_000, 160, 400, 1, 240, 1, 240, 0)


@pytest.fixture(scope="module")
def manifest(tones: Path, home: Path) -> Manifest:
    return prepare("tones", home, {"tones": str(tones)})


@pytest.fixture
def setup(home: Path, tmp_path: Path) -> Setup:
    return Setup(home, tmp_path)


def planned(task: Task, manifest: Manifest, setup: Setup, card: Card = CARD) -> list[Sweep]:
    return expand([task], [card], {"tones": manifest}, setup)


def ids(sweeps: list[Sweep]) -> set[str]:
    return {job.id for sweep in sweeps for job in sweep.jobs}


def changed(task: Task, **fields: Any) -> Task:
    return Task(**{**task.model_dump(), **fields})


def test_every_point_of_the_grid_is_a_job_of_its_own(tasks: dict[str, Task], manifest: Manifest, setup: Setup) -> None:
    (sweep,) = planned(tasks["words"], manifest, setup)
    assert [(job.lr, job.seed) for job in sweep.jobs] == [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]
    assert len(ids([sweep])) == 4
    assert sweep.task.metric == "accuracy"
    (untrained,) = planned(changed(tasks["same"], seeds=[0, 1, 2]), manifest, setup)
    assert [(job.lr, job.seed) for job in untrained.jobs] == [(None, 0)]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"target": "verify", "disjoint": None},
        {"head_args": {"hidden": 99}},
        {"metric": "uar"},
        {"epochs": 13},
        {"batch": 17},
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"clip": 2.0},
        {"patience": 3},
        {"features": "frames"},
        {"features": "live"},
        {"folds": "session"},
    ],
)
def test_jobs_change_with_whatever_can_change_their_result(
    fields: dict[str, Any], tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    if "target" in fields:
        moved = [
            clip._replace(labels={**clip.labels, "verify": clip.labels.get("keyword", "")}) for clip in manifest.clips
        ]
        manifest = manifest._replace(clips=[clip for clip in moved if clip.labels["verify"]])
    before = ids(planned(tasks["words"], manifest, setup))
    assert not before & ids(planned(changed(tasks["words"], **fields), manifest, setup))


@pytest.mark.parametrize(
    "fields",
    [{"fingerprint": "e" * 64}, {"precision": "bf16"}, {"layers": 2}, {"sample_rate": 8000}, {"summary_dim": 3}],
)
def test_jobs_change_with_the_upstream(
    fields: dict[str, Any], tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    before = ids(planned(tasks["words"], manifest, setup))
    assert not before & ids(planned(tasks["words"], manifest, setup, CARD._replace(**fields)))


def test_jobs_change_with_labels_audio_trials_and_limit(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    place = next(n for n, clip in enumerate(manifest.clips) if "keyword" in clip.labels and clip.split == "test")

    def with_clip(**fields: Any) -> Manifest:
        clips = list(manifest.clips)
        clips[place] = clips[place]._replace(**fields)
        return manifest._replace(clips=clips)

    clip = manifest.clips[place]
    other = "up" if clip.labels["keyword"] != "up" else "down"
    variants = [
        planned(tasks["words"], manifest, setup),
        planned(tasks["words"], with_clip(digest="other"), setup),
        planned(tasks["words"], with_clip(labels={**clip.labels, "keyword": other}), setup),
        planned(tasks["words"], with_clip(split="train", labels={**clip.labels, "speaker": "s00"}), setup),
        planned(tasks["words"], manifest, replace(setup, limit=8)),
    ]
    every = [job for sweeps in variants for job in ids(sweeps)]
    assert len(every) == len(set(every)) == 5 * 4
    speakers = {clip.labels["speaker"]: clip.id for clip in manifest.clips if "keyword" in clip.labels}
    tested = [speakers[name] for name in ("s03", "s07", "s11")]
    listed = [Trial("test", tested[0], tested[0], True), Trial("test", tested[0], tested[1], False)]
    one = planned(tasks["same"], manifest._replace(trials=listed), setup)
    more = [*listed, Trial("test", tested[0], tested[2], False)]
    assert not ids(one) & ids(planned(tasks["same"], manifest._replace(trials=more), setup))


def test_jobs_do_not_change_with_paths_places_and_what_is_only_beside_them(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup, tmp_path: Path
) -> None:
    before = planned(tasks["words"], manifest, setup)
    clips = [clip._replace(stretch=clip.stretch._replace(audio=f"/moved/{clip.id}")) for clip in manifest.clips]
    unrelated = Clip("new", "train", {"text": "abc"}, clips[0].stretch, "new audio", "")
    moved = planned(tasks["words"], Manifest("other", "digest", [*clips, unrelated], []), setup)
    assert ids(moved) == ids(before)
    elsewhere = Setup(tmp_path / "home", tmp_path / "results", device="cuda", budget=1.0, limit=10_000, skip_bad=True)
    assert ids(planned(tasks["words"], manifest, elsewhere)) == ids(before)
    assert ids(planned(changed(tasks["words"], features="summary"), manifest, setup)) == ids(before)
    assert [each.key for each in extractions(moved)] == [each.key for each in extractions(before)]


def test_a_wider_grid_keeps_the_ids_of_a_narrow_one(tasks: dict[str, Task], manifest: Manifest, setup: Setup) -> None:
    wide = changed(tasks["words"], lr=[1e-4, 1e-3, 1e-2, 1e-1], seeds=[0, 1, 2])
    assert ids(planned(tasks["words"], manifest, setup)) < ids(planned(wide, manifest, setup))
    assert fixed(wide) == fixed(tasks["words"])


def test_tasks_folds_and_grids_share_the_features_they_can(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    words = tasks["words"]
    alike = [words, changed(words, name="b", lr=[1.0]), changed(words, name="c", folds="session"), tasks["same"]]
    sweeps = expand(alike, [CARD], {"tones": manifest}, setup)
    assert len(sweeps) == 1 + 1 + 4 + 1
    assert len(extractions(sweeps)) == 1
    both = expand([words], [CARD, CARD._replace(name="other", fingerprint="other")], {"tones": manifest}, setup)
    assert len(extractions(both)) == 2


def test_frames_beyond_the_budget_are_planned_live(tasks: dict[str, Task], manifest: Manifest, setup: Setup) -> None:
    for budget, expected in ((1.0, "frames"), (1e-6, "live")):
        (sweep,) = planned(tasks["letters"], manifest, replace(setup, budget=budget))
        assert sweep.features == expected
        assert len(extractions([sweep])) == (expected == "frames")
        (pooled,) = planned(tasks["words"], manifest, replace(setup, budget=budget))
        assert pooled.features == "summary"


def test_a_card_is_kept_for_as_long_as_nothing_behind_it_changes(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "home", tmp_path)
    first = describe("fbank", setup)
    kept = next((tmp_path / "home" / "cards").iterdir())
    before = kept.stat().st_mtime_ns
    assert describe("fbank", setup) == first
    assert kept.stat().st_mtime_ns == before
    kept.write_text("damaged")
    assert describe("fbank", setup) == first
    assert (first.hop, first.window, first.sample_rate, first.parameters) == (160, 400, 16_000, 0)


def test_a_changed_file_of_the_users_is_a_changed_upstream(tmp_path: Path) -> None:
    from benchmark.encoding import upstream_of

    setup = Setup(tmp_path / "home", tmp_path)
    name = write_encoder(tmp_path / "mine.py")
    prints = []
    for text in ("abs()", "square()", "abs()"):
        path = tmp_path / "mine.py"
        write_encoder(path)
        path.write_text(path.read_text().replace("abs()", text))
        upstream_of.cache_clear()
        prints.append(describe(name, setup).fingerprint)
    assert prints[0] == prints[2] != prints[1]
    assert describe(name, setup).parameters == 16 * 400 + 16 + 16 * 16 + 16


def test_precision_is_part_of_a_card_and_frames_are_counted_as_the_upstream_does(tmp_path: Path) -> None:
    import torch

    from upstreams import create

    setup = Setup(tmp_path / "home", tmp_path)
    assert describe("mfcc", replace(setup, precision="bf16")) == describe("mfcc", setup)._replace(precision="bf16")
    upstream = create("mfcc")
    card = describe("mfcc", setup)
    samples = [400, 401, 559, 560, 1, 16_000, 123_457]
    assert [card.frames(count) for count in samples] == upstream.frame_lengths(torch.tensor(samples)).tolist()


def test_an_unknown_metric_or_option_names_those_there_are(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    with pytest.raises(UserError, match=r"no metric 'werr'; did you mean 'wer'\? \(transcription reports: wer, cer\)"):
        planned(changed(tasks["letters"], metric="werr"), manifest, setup)
    with pytest.raises(
        UserError, match=r"no head option 'hiden'; did you mean 'hidden'\? \(classification takes: hidden\)"
    ):
        planned(changed(tasks["words"], head_args={"hiden": 3}), manifest, setup)
