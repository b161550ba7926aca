"""`bench pseudo-label`: rounds resume where they stopped, use no labels, and report their results."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmark.data.manifest import prepare_manifest
from benchmark.data.selection import select_clips
from benchmark.errors import UserError
from benchmark.pretraining import pseudo_label_round
from benchmark.pretraining import training as pretraining
from benchmark.pretraining.checkpoint_files import read_header_facts, state_path
from benchmark.pretraining.pseudo_labels import plan_refinement, pseudo_label_request, refine
from benchmark.pretraining.requests import PretrainingRequest, PseudoLabelRequest, Training
from benchmark.pretraining.sources import load_training_audio
from benchmark.tasks import Task
from downstreams.metrics import eer, min_dcf
from tests.benchmark import toy_embedding
from tests.benchmark.sounds import write_clip
from tests.conftest import Bench
from upstreams.base import UpstreamError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    import upstreams
    from upstreams.pretraining.methods import METHODS

    monkeypatch.setitem(METHODS, toy_embedding.NAME, toy_embedding.MODULE)
    monkeypatch.setitem(upstreams._registered, toy_embedding.NAME, toy_embedding.voice)


class Place:
    """The folder in which one test runs pseudo-labelling."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.corpus, self.folder, self.said = corpus, folder, [""]
        self.start = toy_embedding.write_network(folder / "start.safetensors")
        self.out = folder / "out.safetensors"

    def request(self, start: str | None = None, **options: Any) -> PseudoLabelRequest:
        training = PretrainingRequest(
            "", "tones", self.folder / "home", self.out, data=(("tones", str(self.corpus)),), steps=12, batch=8,
            readers=1,
        )  # fmt: skip
        named = {name: options.pop(name) for name in list(options) if hasattr(training, name)}
        return pseudo_label_request(
            start or f"voice@{self.start}", replace(training, **named), **{"clusters": 8, **options}
        )

    def __call__(self, **options: Any) -> bytes:
        """Return the bytes of the final weights."""
        self.said = []
        return refine(self.request(**options), tell=self.said.append).read_bytes()

    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.out.with_suffix(".json").read_text()))

    def elsewhere(self, name: str) -> Place:
        (self.folder / name).mkdir()
        return Place(self.corpus, self.folder / name)


@pytest.fixture
def place(tones: Path, tmp_path: Path) -> Place:
    return Place(tones, tmp_path)


@pytest.fixture(scope="module")
def done(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The files of two rounds with trials; tests only read them."""
    with pytest.MonkeyPatch.context() as patched:
        _toy.__wrapped__(patched)  # type: ignore[attr-defined]
        place = Place(tones, tmp_path_factory.mktemp("done"))
        from benchmark.tasks import load_tasks
        from tests.benchmark.sounds import PROTOCOL

        path = place.folder / "tasks.yaml"
        path.write_text(PROTOCOL)
        place(rounds=2, verify=load_tasks(path).tasks["same"])
        yield place


def test_each_round_leaves_weights_and_the_last_ones_are_the_output(done: Place) -> None:
    rounds = done.out.with_suffix(".rounds")
    assert {path.name for path in rounds.iterdir()} == {f"{n}.{end}" for n in (1, 2) for end in ("safetensors", "json")}
    start, first, second, last = map(load_file, (done.start, *sorted(rounds.glob("*.safetensors")), done.out))
    assert start.keys() == first.keys() == last.keys()
    assert all(torch.equal(last[name], second[name]) for name in last)
    assert not torch.equal(start["layers.0.weight"], first["layers.0.weight"])
    assert not torch.equal(second["layers.0.weight"], first["layers.0.weight"])


def test_trials_are_scored_before_and_after_each_round_on_validation_and_test(
    done: Place, tones: Path, tasks: dict[str, Task]
) -> None:
    facts = done.facts()
    paths = [done.start, done.out.with_suffix(".rounds") / "1.safetensors", done.out]
    scores = [facts["start"]["scores"], *(each["scores"] for each in facts["rounds"])]
    manifest = prepare_manifest("tones", done.folder / "home", {"tones": str(tones)})
    chosen = select_clips(manifest, tasks["same"], "trials")
    for path, expected in zip(paths, scores, strict=True):
        found = embedded(path, [clip for split in chosen.clips.values() for clip in split])
        centre = torch.stack([found[clip.id] for clip in chosen.clips["train"]]).mean(0)
        for split in ("valid", "test"):
            pairs = [(found[trial.enroll] - centre, found[trial.test] - centre) for trial in chosen.trials[split]]
            cosines = [float(F.cosine_similarity(one, other, dim=0)) for one, other in pairs]
            targets = [trial.target for trial in chosen.trials[split]]
            assert expected[split]["eer"] == pytest.approx(100 * eer(cosines, targets).rate, abs=1e-3)
            assert expected[split]["min_dcf"] == pytest.approx(min_dcf(cosines, targets), abs=1e-4)
    assert scores[0] != scores[1] != scores[2]


def embedded(path: Path, clips: list[Any]) -> dict[str, torch.Tensor]:
    from benchmark.data.audio import read_stretch

    network = toy_embedding.network_of(str(path)).eval()
    waveforms = {clip.id: torch.from_numpy(read_stretch(clip.stretch, 16_000))[None] for clip in clips}
    with torch.no_grad():
        return {id: network(each, torch.tensor([each.shape[1]]))[0] for id, each in waveforms.items()}


def test_the_record_tells_clusters_and_how_they_match_speakers(done: Place) -> None:
    facts = done.facts()
    for facts_of_round in facts["rounds"]:
        assert facts_of_round["clips"] == facts_of_round["data"]["clips"] == 150
        assert (facts_of_round["clusters"], sum(facts_of_round["sizes"])) == (8, 150)
        assert facts_of_round["kept"] == sum(4 <= size <= 50 for size in facts_of_round["sizes"])
        assert facts_of_round["kept_clips"] == sum(
            -(-3 * size // 4) for size in facts_of_round["sizes"] if 4 <= size <= 50
        )
        assert 0 < facts_of_round["speakers"]["all"]["nmi"] < 1
        assert facts_of_round["speakers"]["kept"]["purity"] >= facts_of_round["speakers"]["all"]["purity"] > 1 / 6
        assert [point["step"] for point in facts_of_round["curve"]] == list(range(1, 13))
    assert facts["task"]["name"] == "same"
    card = done.out.with_suffix(".md").read_text()
    for words in (facts["command"], facts["use"], facts["start"]["sha256"], f"{facts_of_round['kept_clips']:,} of 150"):
        assert words in card
    for split in ("valid", "test"):
        assert f"{facts['rounds'][1]['scores'][split]['eer']:.2f}" in card


def test_the_same_request_again_finds_nothing_to_do(done: Place) -> None:
    before = done.out.read_bytes()
    assert done(rounds=2) == before
    assert done.said == [f"nothing left to do: {done.out} exists already"]


def test_trials_may_be_asked_for_later_and_change_no_weight(place: Place, done: Place, tasks: dict[str, Task]) -> None:
    before = place(rounds=2)
    assert before == done.out.read_bytes()
    assert place.facts()["task"] is None
    assert place(rounds=2, verify=tasks["same"]) == before
    assert place.facts()["rounds"][1]["scores"] == done.facts()["rounds"][1]["scores"]
    assert not any(": kept" in line for line in place.said)


def test_one_more_round_goes_on_from_those_there_are(place: Place, done: Place) -> None:
    first = place()
    with pytest.raises(UserError, match="rounds 1, not 2"):
        place(rounds=2)
    place.out.unlink()
    assert place(rounds=2) == done.out.read_bytes() != first
    assert ["kept" in line for line in place.said if line.startswith("round")] == [False, True]


def test_the_command_on_the_card_makes_the_same_weights(
    place: Place, bench: Bench, tasks: dict[str, Task], protocol: Path
) -> None:
    options = {"verify": tasks["same"], "protocol": protocol}
    before = place(rounds=2, half=True, nearest=0.9, seed=3, only="keyword", margin=0.2, accumulate=2, **options)
    rounds = place.facts()["rounds"]
    words = shlex.split(place.facts()["command"])
    place.out.unlink()
    shutil.rmtree(place.out.with_suffix(".rounds"))
    answer = bench(*words[1:], "--home", place.folder / "home", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert f"bench run voice@{place.out}" in answer.out
    assert place.out.read_bytes() == before
    assert [each["scores"] for each in place.facts()["rounds"]] == [each["scores"] for each in rounds]
    assert "nothing left to do" in bench(*words[1:], "--home", place.folder / "home", "--device", "cpu").out
    complaint = bench(*words[1:], "--margin", 0.3, "--home", place.folder / "home", "--device", "cpu").complaint
    assert "was made with margin 0.2, not 0.3; delete it" in complaint


def test_half_precision_rounds_the_same_weights(place: Place, done: Place) -> None:
    place(rounds=2, half=True)
    half, full = load_file(place.out), load_file(done.out)
    assert all(torch.equal(half[name], full[name].half()) for name in full if full[name].is_floating_point())


def test_no_label_is_ever_heard(place: Place, done: Place) -> None:
    """With permuted speakers, the weights are the same, and only the reported agreement of the clusters changes."""
    shutil.copytree(place.corpus, place.folder / "mixed")
    table = place.folder / "mixed" / "metadata.csv"
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"]
    speakers = [row["speaker"] for row in train]
    random.Random(0).shuffle(speakers)
    for row, speaker in zip(train, speakers, strict=True):
        row["speaker"] = speaker
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    place.corpus = place.folder / "mixed"
    assert place(rounds=2) == done.out.read_bytes()
    mixed, whole = (each.facts()["rounds"] for each in (place, done))
    for mixed_round, before in zip(mixed, whole, strict=True):
        assert mixed_round["sizes"] == before["sizes"]
        assert mixed_round["speakers"]["all"]["nmi"] < before["speakers"]["all"]["nmi"]


def test_a_folder_without_labels_will_do(place: Place) -> None:
    request = place.request(corpus=str(place.corpus / "audio"), data=())
    refine(request)
    assert place.facts()["rounds"][0]["speakers"] is None


def test_seeds_and_settings_make_other_weights(place: Place) -> None:
    options: list[dict[str, Any]] = [{}, {"seed": 1}, {"margin": 0.3}, {"nearest": 1.0}, {"clusters": 6}, {"lr": 0.01}]
    weights = [Place.__call__(place.elsewhere(str(number)), **each) for number, each in enumerate(options)]
    assert len(set(weights)) == len(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "150 clips of tones cannot be grouped into 1 clusters"),
        ({"clusters": 151}, "give --clusters of 2 or more, but no more than there are clips"),
        ({"smallest": 60}, "no cluster can have 60 clips or more and 50 or fewer"),
        ({"largest": 4, "clusters": 3}, "0 of 3 clusters have 4 to 4 clips, and 2 are needed; the largest have"),
        ({"nearest": 0.0}, "--nearest 0 is not a share"),
        ({"margin": 1.6}, "AAM-softmax cannot use --scale 20 with --margin 1.6"),
        ({"rounds": 0}, "--rounds 0 leaves nothing to do"),
        ({"start": "voice"}, "not 'voice'; give voice@FILE"),
        ({"start": "voice@a.pt?size=mini"}, "not 'voice@a.pt?size=mini'; give voice@FILE"),
        ({"start": "voice@none.pt"}, "none.pt; give voice@FILE"),
        ({"start": "ssast@none.pt"}, "from its file of weights, not 'ssast@none.pt'; give dino@FILE"),
        ({"start": "fbank"}, "not 'fbank'; give dino@FILE"),
        ({"only": "mood"}, "no clip of tones has a label 'mood'"),
        ({"out": Path("a.pt")}, "one .safetensors file"),
        ({"lr": -1.0}, "--lr -1 is not a positive number"),
        ({"accumulate": 3}, "a batch of 8 cannot be taken in 3 parts; give another --batch or --accumulate"),
    ],
)
def test_mistakes_are_told_in_a_sentence(place: Place, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        place(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not place.out.exists()


def test_weights_of_another_model_and_tasks_without_trials_are_told(place: Place, tasks: dict[str, Task]) -> None:
    with pytest.raises(UserError, match="--verify words has no trials"):
        place(verify=tasks["words"])
    torch.save({"weight": torch.ones(2)}, place.folder / "other.pt")
    with pytest.raises(UpstreamError, match="holds no voice"):
        place(start=f"voice@{place.folder / 'other.pt'}")


def test_a_corpus_of_few_clips_is_told(place: Place) -> None:
    for number in range(12):
        write_clip(place.folder / "few" / f"{number}.wav", seed=number)
    with pytest.raises(UserError, match=r"12 clips of .*few cannot be grouped into 1 clusters"):
        place(corpus=str(place.folder / "few"), clusters=None)


def test_other_settings_do_not_overwrite_what_is_there(place: Place) -> None:
    before = place()
    with pytest.raises(UserError, match=r"margin 0.1, not 0.2; delete it, or give another --out"):
        place(margin=0.2)
    notes = place.out.with_suffix(".md")
    place.out.unlink()
    with pytest.raises(UserError, match=r"margin 0.1, not 0.2"):
        place(margin=0.2)
    notes.write_text("mine")
    with pytest.raises(UserError, match="but the model card needs its name"):
        place()
    assert notes.read_text() == "mine"
    notes.unlink()
    assert place() == before


def test_notes_of_a_training_are_not_taken_for_its_model_card(place: Place) -> None:
    notes = place.out.with_suffix(".md")
    notes.write_text("# To do\n\nbench pretrain dino --corpus pool\nbench pseudo-label dino@a.pth\n\nThen compare.\n")
    with pytest.raises(UserError, match="but the model card needs its name; give another --out"):
        place()
    notes.unlink()
    for content in ("[]", "{}", '{"command": 3}', "bench pretrain dino", "[" * 99_999):
        place.out.with_suffix(".json").write_text(content)
        with pytest.raises(UserError, match=r"out.json exists and is not a model card"):
            place()


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_round_whose_record_is_lost_is_made_again(place: Place, done: Place, content: str | None) -> None:
    shutil.copytree(done.out.with_suffix(".rounds"), place.out.with_suffix(".rounds"))
    record = place.out.with_suffix(".rounds") / "1.json"
    record.unlink() if content is None else record.write_text(content)
    assert place(rounds=2) == done.out.read_bytes()
    assert [f"round {number} is finished already" in " ".join(place.said) for number in (1, 2)] == [False, True]
    assert place.facts()["rounds"][0]["sizes"] == done.facts()["rounds"][0]["sizes"]


def test_where_nothing_can_be_written_is_told_before_anything_is_heard(place: Place) -> None:
    with pytest.raises(UserError, match=r"cannot write /proc/out.safetensors"):
        place(out=Path("/proc/out.safetensors"))
    assert place.said == []


def test_processes_of_torchrun_are_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        place()


@pytest.mark.parametrize("states", [0, 3, 8])
def test_a_disk_that_fills_up_costs_only_what_came_after_the_last_state(
    place: Place, done: Place, monkeypatch: pytest.MonkeyPatch, states: int
) -> None:
    """A round writes 12 states and then 3 files, the weights of the round among them."""
    written = 0

    def full(file: int) -> None:
        nonlocal written
        written += 1
        if written > states:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("benchmark.pretraining.checkpoint_files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            place(rounds=2, save_every=0)
    assert not place.out.exists()
    assert place(rounds=2) == done.out.read_bytes()
    assert any("resumes after step" in line for line in place.said) == (states > 0)
    assert not list(place.folder.rglob("*.state"))


def test_clusters_that_came_out_otherwise_are_not_trained_on_from_a_state_of_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(training: Training, *rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pseudo_label_round, "write_round", stop)
        with pytest.raises(KeyboardInterrupt):
            place(save_every=0)
    embeddings = pseudo_label_round.clip_embeddings
    monkeypatch.setattr(pseudo_label_round, "clip_embeddings", lambda *given: embeddings(*given)[::-1])
    with pytest.raises(UserError, match=r"1.safetensors.state was made with other labels; delete it"):
        place()


MAIN = """
import sys
from pathlib import Path
from tests.benchmark import toy_embedding
from tests.benchmark.pretraining import test_pseudo_labels
from upstreams import register
from upstreams.pretraining.methods import METHODS
METHODS[toy_embedding.NAME] = toy_embedding.MODULE
register(toy_embedding.voice)
place = test_pseudo_labels.Place(Path(sys.argv[1]), Path(sys.argv[2]))
place(rounds=2, save_every=0)
"""


def test_killed_at_any_moment_it_ends_in_the_same_bytes(place: Place, done: Place) -> None:
    dice, killed = random.Random(1), 0
    for number in (1, 2):
        state = state_path(place.out.with_suffix(".rounds") / f"{number}.safetensors")
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(place.corpus), str(place.folder)], cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOY_PAUSE": "0.05"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        limit = time.monotonic() + 120
        while process.poll() is None and not state.exists() and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert read_header_facts(state) is not None
    assert killed == 2
    assert place(rounds=2) == done.out.read_bytes()
    assert any("resumes after step" in line for line in place.said)


def test_embeddings_follow_the_order_of_the_clips(place: Place) -> None:
    asked = plan_refinement(place.request())
    clips = load_training_audio("tones", asked.setup.home, dict(asked.setup.data), pretraining.in_process, False).clips
    found = pseudo_label_round.clip_embeddings(f"voice@{place.start}", clips, asked.setup, pretraining.in_process)
    alone = embedded(place.start, clips)
    np.testing.assert_allclose(found, torch.stack([alone[clip.id] for clip in clips]), rtol=1e-3, atol=1e-5)
