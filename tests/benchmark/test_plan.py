"""What there is to do is known by content, before any audio is touched."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.data.manifest import prepare_manifest
from benchmark.errors import UserError
from benchmark.plan import content_digests, distinct_extractions, fixed_settings, make_sweeps, with_jobs
from benchmark.records import Results
from benchmark.tasks import Task
from benchmark.values import Card, Clip, HeadCard, Manifest, Setup, SplitTrial, Sweep

CARD = Card("fbank", "f" * 64, "fp32", 16_000, 160, 400, 1, 240, 1, 240, 0)


@pytest.fixture(scope="module")
def manifest(tones: Path, home: Path) -> Manifest:
    return prepare_manifest("tones", home, {"tones": str(tones)})


@pytest.fixture
def setup(home: Path, tmp_path: Path) -> Setup:
    return Setup(home, tmp_path)


def planned(task: Task, manifest: Manifest, setup: Setup, card: Card = CARD) -> list[Sweep]:
    return make_sweeps([task], [card], {"tones": manifest}, setup)


def ids(sweeps: list[Sweep]) -> set[str]:
    return {job.id for sweep in sweeps for job in sweep.jobs}


def changed(task: Task, **fields: Any) -> Task:
    return Task(**{**task.model_dump(), **fields})


def another(clip: str) -> str:
    """Another clip of the same speaker."""
    return clip.replace("_7", "_6")


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
        {"train_hours": 1e-3},
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
    listed = [SplitTrial("test", tested[0], another(tested[0]), True), SplitTrial("test", tested[0], tested[1], False)]
    one = planned(tasks["same"], manifest._replace(trials=listed), setup)
    more = [*listed, SplitTrial("test", tested[0], tested[2], False)]
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
    assert [each.key for each in distinct_extractions(moved)] == [each.key for each in distinct_extractions(before)]


def test_jobs_and_features_do_not_change_with_what_an_upstream_costs_and_where_it_came_from(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    (before,) = planned(tasks["words"], manifest, setup)
    told = CARD._replace(cost={"real_time_factor": 0.1}, origin={"model.pt": "a" * 64, "revision": "main"})
    (after,) = planned(tasks["words"], manifest, setup, told)
    assert (after.jobs, after.group) == (before.jobs, before.group)
    assert [each.key for each in distinct_extractions([after])] == [each.key for each in distinct_extractions([before])]


def test_the_ids_of_committed_records_follow_from_what_they_hold(setup: Setup) -> None:
    records, strange = Results(Path(__file__).parents[2] / "results").read_all()
    assert len(records) > 100
    assert not strange
    for record in records:
        task = Task(**record.task, lr=[record.lr or 1.0], seeds=[record.seed], features=record.features)
        head = HeadCard("summary", "labels", {}, record.lr is not None, True, [])
        sweep = Sweep(task, Card(**record.upstream), head, record.fold, "", "", (), None, record.selection)  # type: ignore[arg-type]
        (job,) = with_jobs(sweep, setup, [(record.lr, record.seed, record.layer)]).jobs
        assert (job.id, with_jobs(sweep, setup).group) == (record.id, record.group)


def test_the_id_of_a_job_is_what_it_was_before_there_were_layers(setup: Setup) -> None:
    task = Task(name="a", corpus="b", target="c", head="classification", metric="accuracy", lr=[0.001], seeds=[7])
    sweep = Sweep(task, CARD, HeadCard("summary", "labels", {}, True, True, []), None, "", "", (), None, "s" * 64)  # type: ignore[arg-type]
    (plain,) = with_jobs(sweep, setup).jobs
    code = json.dumps([group_of(task), 0.001, 7], separators=(",", ":"))
    assert plain.id == hashlib.sha256(code.encode()).hexdigest()[:16]
    layers = with_jobs(sweep, setup, [(0.001, 7, layer) for layer in range(3)]).jobs
    assert len({plain.id, *(job.id for job in layers)}) == 4


def group_of(task: Task) -> str:
    """Hash of all that jobs of `CARD` on a task share, spelled out."""
    settings = {
        "name": "a", "corpus": "b", "target": "c", "head": "classification", "head_args": {}, "metric": "accuracy",
        "folds": None, "epochs": 30, "batch": 32, "optimizer": "adam", "weight_decay": 0.0, "clip": 1.0,
        "patience": None, "encoder_lr": None, "disjoint": "speaker",
    }  # fmt: skip
    card = ["fbank", "f" * 64, "fp32", 16_000, 160, 400, 1, 240, 1, 240, 0]
    content = [1, settings, card, "summary", "s" * 64, None]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_contents_tell_audio_labels_and_trials_apart(tasks: dict[str, Task], manifest: Manifest, setup: Setup) -> None:
    place = next(n for n, clip in enumerate(manifest.clips) if clip.labels.get("verify") == "s03")

    def told(trials: list[SplitTrial] | None = None, **fields: Any) -> dict[str, str]:
        clips = list(manifest.clips)
        clips[place] = clips[place]._replace(**fields)
        changed = Manifest("tones", "", clips, trials or [])
        return content_digests(planned(tasks["same"], changed, setup)[0].selection)

    def changes(now: dict[str, str]) -> set[str]:
        return {kind for kind, code in told().items() if now[kind] != code}

    one, other = (f"audio/{speaker}_keyword_7.wav" for speaker in ("s03", "s07"))
    pair = [SplitTrial("test", one, another(one), True), SplitTrial("test", one, other, False)]
    assert changes(told()) == set()
    assert changes(told(digest="other")) == {"audio"}
    assert changes(told(labels={**manifest.clips[place].labels, "mood": "glad"})) == {"labels"}
    assert "trials" in changes(told(pair))


def test_a_wider_grid_keeps_the_ids_of_a_narrow_one(tasks: dict[str, Task], manifest: Manifest, setup: Setup) -> None:
    wide = changed(tasks["words"], lr=[1e-4, 1e-3, 1e-2, 1e-1], seeds=[0, 1, 2])
    assert ids(planned(tasks["words"], manifest, setup)) < ids(planned(wide, manifest, setup))
    assert fixed_settings(wide) == fixed_settings(tasks["words"])


def test_tasks_folds_and_grids_share_the_features_they_can(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    words = tasks["words"]
    alike = [words, changed(words, name="b", lr=[1.0]), changed(words, name="c", folds="session"), tasks["same"]]
    sweeps = make_sweeps(alike, [CARD], {"tones": manifest}, setup)
    assert len(sweeps) == 1 + 1 + 4 + 1
    assert len(distinct_extractions(sweeps)) == 1
    both = make_sweeps([words], [CARD, CARD._replace(name="other", fingerprint="other")], {"tones": manifest}, setup)
    assert len(distinct_extractions(both)) == 2


def test_frames_beyond_the_budget_are_planned_live(tasks: dict[str, Task], manifest: Manifest, setup: Setup) -> None:
    for budget, expected in ((1.0, "frames"), (1e-6, "live")):
        (sweep,) = planned(tasks["letters"], manifest, replace(setup, budget=budget))
        assert sweep.features == expected
        assert len(distinct_extractions([sweep])) == (expected == "frames")
        (pooled,) = planned(tasks["words"], manifest, replace(setup, budget=budget))
        assert pooled.features == "summary"


def test_an_unknown_metric_or_option_names_those_there_are(
    tasks: dict[str, Task], manifest: Manifest, setup: Setup
) -> None:
    with pytest.raises(UserError, match=r"no metric 'werr'; did you mean 'wer'\? \(transcription reports: wer, cer\)"):
        planned(changed(tasks["letters"], metric="werr"), manifest, setup)
    with pytest.raises(
        UserError, match=r"no head option 'hiden'; did you mean 'hidden'\? \(classification takes: hidden\)"
    ):
        planned(changed(tasks["words"], head_args={"hiden": 3}), manifest, setup)
