"""`bench pretrain`: the files it writes, the mistakes it refuses, and that it resumes where it stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmark.engines.local import in_process
from benchmark.errors import UserError
from benchmark.pretraining.checkpoint_files import read_header_facts, state_path
from benchmark.pretraining.model_card import CurveRow, model_card, thinned_curve
from benchmark.pretraining.processes import errors_reported_once
from benchmark.pretraining.progress import format_duration, time_left, training_bar
from benchmark.pretraining.progress import progress_text as shortly
from benchmark.pretraining.requests import PretrainingRequest
from benchmark.pretraining.training import adjusted_recipe
from tests.benchmark import toy_method
from tests.benchmark.sounds import write_clip
from tests.conftest import Answer, Bench
from upstreams.base import UpstreamError
from upstreams.pretraining.loop import TrainingProgress

ROOT = Path(__file__).parents[3]
SLOW = "toy?pause=0.02"  # 60 steps take at least 1.2 s


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    from upstreams.pretraining.methods import METHODS

    monkeypatch.setitem(METHODS, toy_method.NAME, toy_method.MODULE)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of 0.1 to 1 s."""
    folder = tmp_path_factory.mktemp("audio")
    for number in range(1, 11):
        write_clip(folder / f"{number}.wav", seconds=number / 10, seed=number)
    return folder


class Place:
    """The folder in which one test pre-trains."""

    def __init__(self, bench: Bench, audio: Path, folder: Path) -> None:
        self.bench, self.audio, self.folder, self.out = bench, audio, folder, folder / "out.safetensors"

    def arguments(self, method: str = "toy", out: Path | None = None) -> list[str]:
        where = ["--corpus", self.audio, "--home", self.folder / "home", "--device", "cpu", "--out", out or self.out]
        return ["pretrain", method, *map(str, where)]

    def __call__(self, *options: object, method: str = "toy", out: Path | None = None) -> Answer:
        return self.bench(*self.arguments(method, out), *options)

    def left(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"home"}


@pytest.fixture
def place(bench: Bench, audio: Path, tmp_path: Path) -> Place:
    return Place(bench, audio, tmp_path)


def test_weights_and_a_card_of_them_are_written_and_the_same_command_finds_nothing_to_do(place: Place) -> None:
    answer = place()
    assert answer.code == 0, answer.err
    assert f"split pool of {place.audio}, 10 clips" in answer.out
    assert "step 60/60, loss" in answer.err
    assert f"bench run toy@{place.out}" in answer.out
    assert place.left() == {"out.safetensors", "out.md", "out.json"}
    before = place.out.read_bytes()
    assert {tuple(each.shape) for each in load_file(place.out).values()} == {(8, 400), (8,), (400, 8), (400,)}
    again = place()
    assert again.code == 0
    assert "nothing left to do" in again.out
    assert place.out.read_bytes() == before


def test_the_card_tells_all_that_made_the_weights(place: Place) -> None:
    (place.folder / "audio").mkdir()
    for path in place.audio.iterdir():
        shutil.copy(path, place.folder / "audio")
    (place.folder / "audio" / "bad.wav").write_bytes(b"")
    place.audio = place.folder / "audio"
    answer = place("--skip-bad", "--seed", 3, "--steps", 200, "--lr", 0.005, "--accumulate", 2)
    assert answer.code == 0, answer.err
    facts = json.loads(place.out.with_suffix(".json").read_text())
    assert [facts[name] for name in ("method", "size", "seed", "half")] == ["toy", "mini", 3, False]
    assert facts["weights"] == sum(each.numel() for each in load_file(place.out).values())
    data = facts["data"]
    assert (data["clips"], data["split"], data["left_out"]) == (10, "pool", [["bad.wav", "is an empty file"]])
    assert data["hours"] == pytest.approx(5.5 / 3600)
    assert data["hours_heard"] == pytest.approx(200 * 4 * 0.1 / 3600)
    assert data["epochs"] == pytest.approx(800 / 55)
    assert facts["recipe"]["lr"] == 0.005
    assert facts["recipe"]["steps"] == 200
    assert facts["run"]["processes"] == 1
    assert facts["run"]["parts of a step"] == 2
    assert 0 <= facts["run"]["share of it waiting for data"] <= 1
    assert torch.__version__.startswith(facts["run"]["versions"]["torch"])
    curve = facts["curve"]
    assert [point["step"] for point in curve] == list(range(2, 201, 2))
    assert max(point["lr"] for point in curve) <= 0.005
    assert curve[-1]["terms"]["loss"] < curve[0]["terms"]["loss"]
    text = place.out.with_suffix(".md").read_text()
    for message in ("bad.wav is an empty file", data["digest"], "| lr | 0.005 |", facts["command"], facts["use"]):
        assert message in text
    table = text.split("## Loss")[1].split("## Again")[0]
    assert table.count("\n| ") == 1 + 20
    assert table.strip().splitlines()[-1].startswith("| 200 |")


def test_the_command_on_the_card_makes_the_same_weights(place: Place) -> None:
    options = ["--seed", 2, "--hours", 0.002, "--batch", 6, "--precision", "bf16", "--half", "--accumulate", 3]
    assert place(*options, method="toy?width=6").code == 0
    facts = json.loads(place.out.with_suffix(".json").read_text())
    assert facts["recipe"]["steps"] == round(0.002 * 3600 / (6 * 0.1))
    first = place.out.read_bytes()
    place.out.unlink()
    words = facts["command"].split()
    assert words[:3] == ["bench", "pretrain", "'toy?width=6'"]
    answer = place.bench("pretrain", "toy?width=6", *words[3:], "--home", place.folder / "home", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert place.out.read_bytes() == first


def test_the_file_itself_says_what_it_is_and_holds_nothing_of_chance(place: Place) -> None:
    assert place("--steps", 3).code == 0
    facts = read_header_facts(place.out)
    assert facts is not None
    assert facts["identity"]["method"] == "toy"
    assert facts["card"]["recipe"]["steps"] == 3
    assert place("--steps", 3, out=place.folder / "other.safetensors").code == 0
    assert (place.folder / "other.safetensors").read_bytes() == place.out.read_bytes()


def test_no_steps_write_the_weights_that_training_starts_from(place: Place) -> None:
    answer = place("--steps", 0, "--seed", 5)
    assert answer.code == 0, answer.err
    from upstreams.pretraining.methods import create_method

    start = create_method("toy", "mini", 5).exported()
    written = load_file(place.out)
    assert written.keys() == start.keys()
    assert all(torch.equal(written[name], start[name]) for name in start)
    assert "No step was made" in place.out.with_suffix(".md").read_text()


def test_half_precision_rounds_the_same_weights(place: Place) -> None:
    assert place("--steps", 4).code == 0
    other = place.folder / "half.safetensors"
    assert place("--steps", 4, "--half", out=other).code == 0
    full, half = load_file(place.out), load_file(other)
    assert {each.dtype for each in half.values()} == {torch.float16}
    assert all(torch.equal(half[name], full[name].half()) for name in full)


def test_seeds_and_options_make_other_weights(place: Place) -> None:
    weights = []
    for number, options in enumerate([[], ["--seed", 1], ["--lr", 0.02], ["--batch", 8], ["--precision", "bf16"]]):
        out = place.folder / f"{number}.safetensors"
        assert place("--steps", 2, *options, out=out).code == 0
        weights.append(load_file(out)["layers.0.weight"])
    assert not any(torch.equal(one, other) for place_, one in enumerate(weights) for other in weights[:place_])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", 0.02], "lr 0.01, not 0.02"),
        (["--seed", 7], "seed 0, not 7"),
        (["--half", "--steps", 3], "half false, not true and steps 2, not 3"),
    ],
)
def test_weights_of_another_training_are_not_overwritten(place: Place, options: list[object], message: str) -> None:
    assert place("--steps", 2).code == 0
    before = place.out.read_bytes()
    answer = place("--steps", 2, *options)
    assert answer.code == 2
    assert message in answer.complaint
    assert "delete it, or give another --out" in answer.complaint
    assert place.out.read_bytes() == before


def test_weights_from_other_data_are_not_overwritten(place: Place) -> None:
    assert place("--steps", 2).code == 0
    write_clip(place.folder / "more" / "a.wav")
    place.audio = place.folder / "more"
    assert "was made with other data; delete it" in place("--steps", 2).complaint


NAMELESS = json.dumps({"__metadata__": {"bench": "{}"}}).encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 8 + b"[" * 99_999, bytes([len(NAMELESS), *bytes(7)]) + NAMELESS],
)
def test_files_of_other_origin_are_not_overwritten(place: Place, content: bytes) -> None:
    place.out.write_bytes(content)
    answer = place("--steps", 2)
    assert answer.code == 2
    assert "exists already, and bench pretrain or pseudo-label did not write it" in answer.complaint
    assert place.out.read_bytes() == content


def test_what_is_no_model_card_is_not_overwritten(place: Place) -> None:
    notes = place.out.with_suffix(".md")
    notes.write_text("mine")
    assert f"{notes} exists and is not a model card" in place("--steps", 1).complaint
    assert (place.left(), notes.read_text()) == ({"out.md"}, "mine")


def test_what_another_command_wrote_meanwhile_is_not_overwritten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place("--steps", 1, "--seed", 1, out=place.folder / "other.safetensors").code == 0
    written = (place.folder / "other.safetensors").read_bytes()
    monkeypatch.setattr(toy_method.Toy, "stepped", lambda method, done: place.out.write_bytes(written))
    assert "was made with seed 1, not 0; delete it" in place("--steps", 1).complaint
    assert place.out.read_bytes() == written


def test_a_limit_on_the_size_of_files_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("benchmark.pretraining.checkpoint_files.os.fsync", refuse)
    assert "(File too large); correct that, then run the same command again" in place("--steps", 1).complaint


def test_hours_are_those_that_are_heard_of_clips_shorter_than_a_stretch(place: Place) -> None:
    write_clip(place.folder / "short" / "a.wav", seconds=0.05)
    place.audio = place.folder / "short"
    assert place("--hours", 0.001).code == 0
    facts = json.loads(place.out.with_suffix(".json").read_text())
    assert facts["recipe"]["steps"] == round(3.6 / (4 * 0.05))
    assert facts["data"]["hours_heard"] == pytest.approx(0.001)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_in_utf_8_is_told(place: Place) -> None:
    (place.folder / "names").mkdir()
    shutil.copy(place.audio / "1.wav", os.fsencode(place.folder / "names") + b"/\xe9.wav")
    place.audio = place.folder / "names"
    assert r"the name of \udce9.wav in" in place("--steps", 1).complaint


def test_inside_an_engine_a_training_shows_only_its_share(capfd: pytest.CaptureFixture[str]) -> None:
    in_process(shown, [1.0, 3.0], "trainings", lambda seconds: seconds)
    assert capfd.readouterr().err == "trainings: done in 0:00\n"


def shown(seconds: float) -> None:
    with training_bar("one of them") as show:
        show(TrainingProgress(5, 10, {"loss": 1.0}, 0.1, 0.0, seconds))


def test_long_waits_for_data_are_told_beside_the_terms() -> None:
    assert shortly(TrainingProgress(5, 10, {"loss": 1.5}, 0.1, 0.04, 1.0)) == "loss 1.5"
    assert shortly(TrainingProgress(5, 10, {"loss": 1.5}, 0.1, 0.45, 1.0)) == "waits for data 45%, loss 1.5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", 5, "--hours", 1], "--steps and --hours both say"),
        (["--batch", 6, "--accumulate", 4], "a batch of 6 cannot be shared evenly by 1 processes in 4 parts"),
        (["--precision", "fp8"], "no precision 'fp8'"),
        (["--lr", "nan"], "--lr nan is not a positive number"),
        (["--hours", "inf"], "--hours inf is not a positive number"),
        (["--size", "huge"], "no size 'huge'"),
        (["--out", "weights.pt"], "one .safetensors file"),
        (["--out", "/proc/none/a.safetensors"], "cannot write /proc/none/a.safetensors"),
        (["--corpus", "nowhere"], "no corpus 'nowhere'"),
    ],
)
def test_mistakes_are_told_in_a_sentence_before_anything_is_trained(
    place: Place, options: list[object], message: str
) -> None:
    answer = place(*options)
    assert answer.code == 2, answer.err
    assert message in answer.complaint
    assert not place.left()


@pytest.mark.parametrize(
    ("method", "message"), [("toi", "did you mean 'toy'"), ("toy?widht=3", "did you mean 'width'")]
)
def test_misnamed_methods_and_options_are_told(place: Place, method: str, message: str) -> None:
    assert message in place(method=method).complaint


def test_a_folder_in_place_of_the_output_and_one_without_room_are_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.out.mkdir()
    assert "it is a folder" in place().complaint
    place.out.rmdir()
    full = shutil.disk_usage(place.folder)._replace(free=1000)
    monkeypatch.setattr("benchmark.pretraining.checkpoint_files.shutil.disk_usage", lambda path: full)
    assert "free there; free some space" in place().complaint
    assert not place.left()


def stop(place: Place, monkeypatch: pytest.MonkeyPatch, states: int) -> Answer:
    """A training whose disk is full after a number of states."""
    written = 0

    def full(file: int) -> None:
        nonlocal written
        written += 1
        if written > states:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("benchmark.pretraining.checkpoint_files.os.fsync", full)
        return place("--save-every", 0)


def test_a_training_whose_disk_fills_up_goes_on_from_its_last_state(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = place.folder / "whole.safetensors"
    assert place(out=whole).code == 0
    answer = stop(place, monkeypatch, 2)
    assert answer.code == 2
    assert "the disk is full" in answer.complaint
    assert place.left() - {"whole.safetensors", "whole.md", "whole.json"} == {"out.safetensors.state"}
    assert "resumes after step 2" in place().out
    assert place.out.read_bytes() == whole.read_bytes()
    assert not state_path(place.out).exists()


def test_a_state_of_another_training_is_refused_and_a_broken_one_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(place, monkeypatch, 3)
    state = state_path(place.out)
    answer = place("--lr", 0.02)
    assert f"{state} was made with lr 0.01, not 0.02; delete it" in answer.complaint
    content = state.read_bytes()
    for broken in (content[:-100], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        state.write_bytes(broken)
        answer = place()
        assert answer.code == 2
        assert f"{state} is broken; delete it" in answer.complaint
    state.write_bytes(content)
    assert place().code == 0


def test_a_state_that_outlived_its_weights_is_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(place, monkeypatch, 3)
    content = state_path(place.out).read_bytes()
    assert place().code == 0
    state_path(place.out).write_bytes(content)
    assert "nothing left to do" in place().out
    assert not state_path(place.out).exists()


def test_hours_and_steps_settle_the_recipe() -> None:
    request = PretrainingRequest("toy", "", Path())
    recipe = toy_method.RECIPE
    assert adjusted_recipe(recipe, request) == recipe
    for steps, warmup in [(600, 5), (60, 5), (20, 2), (0, 0)]:
        found = adjusted_recipe(recipe, PretrainingRequest("toy", "", Path(), steps=steps))
        assert (found.steps, found.warmup) == (steps, warmup)
    assert adjusted_recipe(recipe, PretrainingRequest("toy", "", Path(), hours=1, batch=36)).steps == 1000
    assert adjusted_recipe(recipe, PretrainingRequest("toy", "", Path(), lr=1e-7)).final_lr == 1e-7
    with pytest.raises(UserError):
        adjusted_recipe(recipe, PretrainingRequest("toy", "", Path(), hours=1, steps=1))


def started(
    arguments: list[str], folder: Path, launcher: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", toy_method.MODULE, *arguments]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def interrupt(place: Place, arguments: list[str], number: signal.Signals, pause: float) -> tuple[int, str]:
    """Send a signal to a training process some time after it saved a new state; return its exit code and output."""
    before = changed(state_path(place.out))
    process = started(arguments, place.folder)
    limit = time.monotonic() + 60
    while process.poll() is None and changed(state_path(place.out)) == before and time.monotonic() < limit:
        time.sleep(0.002)
    time.sleep(pause)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def test_killed_at_any_moment_it_ends_in_the_same_bytes(place: Place) -> None:
    whole = place.folder / "whole.safetensors"
    assert place(method=SLOW, out=whole).code == 0
    arguments = [*place.arguments(SLOW), "--save-every", "0"]
    dice = random.Random(4)
    killed = []
    for _ in range(2):
        code, said = interrupt(place, arguments, signal.SIGKILL, dice.uniform(0, 0.2))
        killed.append(code)
        assert not place.out.exists(), said
        assert place.left() >= {"out.safetensors.state"}
    assert killed == [-signal.SIGKILL] * 2
    code, said = interrupt(place, arguments, signal.SIGTERM, 0.05)
    assert code == 130, said
    assert said.splitlines()[-1] == "bench: interrupted; the same command resumes where this one stopped"
    kept = read_header_facts(state_path(place.out))
    assert kept is not None
    step = kept["state"]["step"]
    answer = place(method=SLOW)
    assert f"resumes after step {step}, from" in answer.out
    assert place.out.read_bytes() == whole.read_bytes()
    assert place.left() == {f"{name}.{end}" for name in ("out", "whole") for end in ("safetensors", "md", "json")}
    facts, undisturbed = (json.loads(path.with_suffix(".json").read_text()) for path in (place.out, whole))
    assert facts["curve"] == undisturbed["curve"]
    assert facts["run"]["resumed"] == 3
    assert facts["run"]["seconds"] > 1.2


LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]


def test_two_processes_of_torchrun_train_together_and_one_of_them_writes_and_tells(place: Place) -> None:
    process = started([*place.arguments(), "--steps", "12"], place.folder, LAUNCHER)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("wrote ") == said.count("step 12/12") == 1
    assert place.left() == {"out.safetensors", "out.md", "out.json"}
    facts = json.loads(place.out.with_suffix(".json").read_text())
    assert facts["run"]["processes"] == 2
    assert facts["curve"][-1]["terms"]["loss"] < facts["curve"][0]["terms"]["loss"]
    assert "nothing left to do" in place("--steps", 12).out


def test_two_processes_tell_a_mistake_once(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = [*place.arguments(), "--batch", "3"]
    both = [started(arguments, place.folder, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert "shared evenly by 2 processes" in said[0]
    assert "Traceback" not in said[0] + said[1]
    assert "bench: " not in said[1]


@pytest.mark.parametrize(
    ("rank", "cause", "reported"),
    [(0, None, True), (1, None, False), (1, MemoryError(), True)],
)
def test_what_all_processes_find_is_told_by_the_first(rank: int, cause: Exception | None, reported: bool) -> None:
    with pytest.raises(UpstreamError if reported else SystemExit), errors_reported_once(rank):
        raise UpstreamError("loss is not finite") from cause


def test_the_time_left_is_told_from_the_speed_of_this_run() -> None:
    left = time_left()
    texts = [
        left(TrainingProgress(step, 100, {}, 0.0, 0.0, seconds))
        for step, seconds in [(40, 9.0), (50, 19.0), (60, 25.0)]
    ]
    assert texts == ["?", "0:50", "0:32"]
    assert [format_duration(seconds) for seconds in (0.4, 59.6, 3599.4, 7322)] == ["0:00", "1:00", "59:59", "2:02:02"]


def test_the_curve_on_a_card_averages_what_lies_between_its_rows() -> None:
    curve = [CurveRow(step, 0.1, {"loss": float(step)}) for step in range(1, 51)]
    rows = thinned_curve(curve, 20)
    assert len(rows) == 20
    assert rows[-1].step == 50
    parts = [row.step - before for row, before in zip(rows, [0, *(row.step for row in rows)], strict=False)]
    assert sum(row.terms["loss"] * part for row, part in zip(rows, parts, strict=True)) == pytest.approx(sum(range(51)))
    assert thinned_curve(curve[:7], 20) == curve[:7]
    assert thinned_curve([], 20) == []


def test_a_card_names_some_of_the_clips_that_were_left_out_and_says_how_many_there_are(place: Place) -> None:
    assert place("--steps", 1).code == 0
    facts = json.loads(place.out.with_suffix(".json").read_text())
    assert "left out:" not in model_card(facts)
    facts["data"]["left_out"] = [[f"{number}.wav", "is an empty file"] for number in range(23)]
    card = model_card(facts)
    assert card.count("- left out: ") == 20
    assert "- left out: 19.wav is an empty file\n- and 3 more, which" in card
    assert "| left out, because they could not be used | 23 |" in card
    assert "\n\n\n" not in card
