"""The command line `bench`: its output, the files it writes, and its exit codes."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.cli.output import family_rows
from benchmark.data.audio import inspect_audio, read_stretch
from benchmark.plan import PROTOCOL as NUMBER
from benchmark.values import Stretch
from tests.benchmark.encoders import write_encoder
from tests.benchmark.sounds import labelled, write_clip, write_corpus, write_table
from tests.conftest import Bench
from upstreams import create
from upstreams.families.s3prl_entries import HubEntry
from upstreams.pretraining.methods import METHODS


class Place:
    """The folders of one test, as command-line options."""

    def __init__(self, folder: Path, tones: Path, protocol: Path, home: Path) -> None:
        self.folder, self.results, self.home = folder, folder / "results", home
        self.protocol = ["--protocol", protocol]
        self.data = ["--data", f"tones={tones}"]

    @property
    def where(self) -> list[object]:
        return [*self.protocol, *self.data, "--home", self.home, "--results", self.results, "--device", "cpu"]

    def files(self, kind: str = "runs/**/*") -> dict[str, bytes]:
        found = [path for path in self.results.glob(kind) if path.is_file()]
        return {str(path.relative_to(self.results)): path.read_bytes() for path in found}


@pytest.fixture
def place(tmp_path: Path, tones: Path, protocol: Path, home: Path) -> Place:
    return Place(tmp_path, tones, protocol, home)


QUICK = ["--task", "same", "--task", "sounds"]


def test_a_run_prints_and_writes_the_table_and_the_same_command_finds_nothing_to_do(bench: Bench, place: Place) -> None:
    first = bench("run", "fbank", "mfcc", *QUICK, *place.where)
    assert first.code == 0
    assert "6 jobs, 0 done already, 6 to do" in first.out
    assert "6 jobs done" in first.out
    for name in (*(f"leaderboard.{kind}" for kind in ("csv", "md", "tex", "html")), "results.csv"):
        assert f"wrote {place.results / name}" in first.out
    board = (place.results / "leaderboard.csv").read_text().splitlines()
    assert board[0].split(",")[:5] == ["upstream", "same eer", "same eer low", "same eer high", "same eer rank"]
    assert board[0].split(",")[5:] == ["sounds map", "sounds map low", "sounds map high", "sounds map rank", "borda"]
    assert [line.split(",")[0] for line in board[1:]] == ["fbank", "mfcc"]
    before = place.files("**/*")
    second = bench("run", "fbank", "mfcc", *QUICK, *place.where)
    assert second.code == 0
    assert "nothing was left to do" in second.out
    assert place.files("**/*") == before


def test_a_plan_says_what_a_run_will_do_and_does_none_of_it(bench: Bench, place: Place, tmp_path: Path) -> None:
    place.home = tmp_path / "home"
    arguments = ["fbank", "--task", "same", "--task", "letters", *place.where]
    before = bench("plan", *arguments)
    assert before.code == 0
    assert "2 jobs, 0 done, 2 to do" in before.out
    assert not (place.home / "features").exists()
    assert not place.results.exists()
    planned = int(before.out.rsplit("to do; ", 1)[1].split(" bytes")[0].replace(",", ""))
    assert bench("run", *arguments).code == 0
    assert sum(path.stat().st_size for path in (place.home / "features").rglob("*.npy")) == planned
    after = bench("plan", *arguments)
    assert "2 jobs, 2 done, 0 to do; 0 bytes to extract" in after.out
    wider = bench("plan", *arguments, "--task", "sounds")
    assert "4 jobs, 2 done, 2 to do" in wider.out
    live = bench("plan", *arguments, "--budget", "0.0001")
    assert "live" in live.out


def test_reports_are_made_anew_from_the_records_alone(bench: Bench, place: Place) -> None:
    bench("run", "fbank", "mfcc", "--task", "same", "--task", "sounds", *place.where)
    before = place.files("leaderboard.*") | place.files("results.csv")
    assert len(before) == 5
    for name in before:
        (place.results / name).unlink()
    assert bench("report", "--results", place.results).code == 0
    assert place.files("leaderboard.*") | place.files("results.csv") == before


def test_a_report_keeps_the_order_of_the_run(bench: Bench, place: Place) -> None:
    bench("run", "mfcc", "fbank", "--task", "sounds", "--task", "same", *place.where)
    before = place.files("leaderboard.*") | place.files("results.csv")
    assert bench("report", "--results", place.results).code == 0
    assert place.files("leaderboard.*") | place.files("results.csv") == before


def test_records_of_an_older_protocol_are_named_and_left_alone(bench: Bench, place: Place) -> None:
    bench("run", "fbank", "--task", "same", *place.where)
    path = next(place.results.glob("runs/*/*/*.json"))
    new = path.read_text()
    old = new.replace(f'"protocol": {NUMBER}', '"protocol": 0')
    assert old != new
    path.with_name("0000.json").write_text(old)
    answer = bench("report", "--results", place.results)
    assert answer.code == 0
    assert "1 records in" in answer.complaint
    assert "are of protocol 0, not" in answer.complaint
    assert path.with_name("0000.json").read_text() == old
    path.unlink()
    assert "no records in" in bench("report", "--results", place.results).err


MISTAKES = [
    (["run", "fbnk", "--suite", "quick"], "no upstream 'fbnk'; did you mean 'fbank'? see: bench list upstreams"),
    (["run", "nowhere.py:mine", "--suite", "quick"], "no file 'nowhere.py'"),
    (["run", "zz:mine", "--suite", "quick"], "no family of upstreams in 'zz:mine'"),
    (["run", "fbank@random", "--suite", "quick"], "no random twin of 'fbank'"),
    (["run", "fbank", "--task", "word"], "no task 'word'; did you mean 'words'? see: bench list tasks"),
    (["run", "fbank", "--suite", "quik"], "no suite 'quik'; did you mean 'quick'? see: bench list suites"),
    (["run", "fbank", "--task", "same", "--data", "tones"], "--data 'tones' is not of the form NAME=PATH"),
    (["run", "fbank", "--task", "same", "--data", "tones=/no/where"], "there is no such folder or file"),
    (["run", "fbank", "--task", "same", "--device", "cpuu"], "no device 'cpuu'; did you mean 'cpu'?"),
    (["run", "fbank", "--task", "same", "--device", "cuda:9"], "no device 'cuda:9'"),
    (["run", "fbank", "--task", "same", "--precision", "fp16"], "no precision 'fp16'"),
    (["run", "fbank", "--task", "same", "--protocol", "/no/where.yaml"], "cannot read the protocol /no/where.yaml"),
    (["plan", "fbnk", "--suite", "quick"], "no upstream 'fbnk'; did you mean 'fbank'?"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), MISTAKES, ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_sentence_and_exit_code_two(
    bench: Bench, place: Place, arguments: list[str], expected: str
) -> None:
    answer = bench(*arguments[:2], *place.where, *arguments[2:])
    assert answer.code == 2
    assert expected in answer.complaint
    assert not place.files()


def test_unknown_options_and_commands_end_with_code_two(bench: Bench) -> None:
    for arguments in (
        ["run"],
        ["run", "fbank", "--limit", "0"],
        ["run", "fbank", "--lmit", "3"],
        ["rn"],
        ["data", "x"],
    ):
        answer = bench(*arguments)
        assert answer.code == 2
        assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("{corpus: tones, target: keyword, head: clasification}", "no head 'clasification'; did you mean"),
        (
            "{corpus: tones, target: keyword, head: classification, metric: acuracy}",
            "no metric 'acuracy'; did you mean",
        ),
        ("{corpus: tones, target: keyword, head: classification, head_args: {hiden: 3}}", "no head option 'hiden'"),
        ("{corpus: tone, target: keyword, head: classification}", "no corpus 'tone'"),
        ("{corpus: tones, target: keywords, head: classification}", "has a label 'keywords'; it has: keyword, session"),
        (
            "{corpus: tones, target: text, head: transcription, features: summary}",
            "needs frames, not 'features: summary'",
        ),
        ("{corpus: tones, target: keyword, head: classification, features: finetune}", "'fbank' has no weights"),
        ("{corpus: tones, target: keyword, head: classification, folds: color}", "folds by 'color' need at least 3"),
        ("{corpus: tones, target: text, head: classification}", "labels never seen in training"),
    ],
)
def test_a_task_that_cannot_be_is_explained_before_anything_runs(
    bench: Bench, place: Place, block: str, expected: str
) -> None:
    path = place.folder / "mine.yaml"
    path.write_text(f"tasks: {{mine: {block}}}\n")
    answer = bench("run", "fbank", *place.where, "--protocol", path)
    assert answer.code == 2
    assert expected in answer.complaint
    assert not place.files()


def test_a_file_where_a_folder_is_needed_is_explained(bench: Bench, place: Place) -> None:
    (place.folder / "file").touch()
    for option in ("--home", "--results"):
        answer = bench("run", "fbank", "--task", "same", *place.where, option, place.folder / "file")
        assert answer.code == 2
        assert "is a file where a folder is needed" in answer.complaint


@pytest.mark.parametrize("fault", ["raises", "raises late", "not a number"])
def test_a_broken_upstream_fails_alone_and_finishes_once_it_is_mended(bench: Bench, place: Place, fault: str) -> None:
    mine = write_encoder(place.folder / "mine.py", fault)
    arguments = ["run", mine, "fbank", "--task", "same", "--task", "letters", *place.where]
    answer = bench(*arguments)
    assert answer.code == 1
    assert "Traceback" not in answer.err
    errors = {name: text.decode() for name, text in place.files().items() if name.endswith(".error.txt")}
    assert errors
    if fault.startswith("raises"):
        assert all("Traceback" in text and "out of cheese" in text for text in errors.values())
        assert "RuntimeError: out of cheese (see " in answer.err
    else:
        assert mine in answer.err
        assert "see: bench check" in answer.err or "finite" in answer.err
    for line in answer.err.splitlines():
        assert not line.startswith("bench: ") or ".error.txt" in line
    assert Path(answer.err.rsplit("(see ", 1)[1].strip().rstrip(")")).is_file()
    good = {name: text for name, text in place.files().items() if "fbank" in name}
    assert len([name for name in good if name.endswith(".json")]) == 2
    assert "fbank" in (place.results / "leaderboard.csv").read_text()
    write_encoder(place.folder / "mine.py")
    mended = bench(*arguments)
    assert mended.code == 0
    assert "2 jobs done" in mended.out
    after = place.files()
    assert not [name for name in after if name.endswith(".error.txt")]
    assert {name: after[name] for name in good} == good
    assert len([name for name in after if name.endswith(".json") and "fbank" not in name]) >= 2


@pytest.mark.parametrize("fault", ["too many frames", "too few frames"])
def test_an_upstream_that_miscounts_its_frames_stops_the_run_before_any_work(
    bench: Bench, place: Place, fault: str
) -> None:
    mine = write_encoder(place.folder / "mine.py", fault)
    answer = bench("run", mine, "fbank", "--task", "same", *place.where)
    assert answer.code == 2
    assert "hop, window, layers and dim say" in answer.complaint
    assert not place.files()


def test_features_too_large_for_half_precision_are_told_of_with_a_way_out(bench: Bench, place: Place) -> None:
    mine = write_encoder(place.folder / "mine.py", "too large")
    answer = bench("run", mine, "--task", "letters", *place.where)
    assert answer.code == 2
    assert "half precision cannot hold; 'features: live' in the task avoids storing them" in answer.complaint


def test_a_misnamed_upstream_stops_the_run_before_any_work(bench: Bench, place: Place) -> None:
    answer = bench("run", "fbank", "fbnk", "--task", "same", *place.where)
    assert answer.code == 2
    assert "did you mean 'fbank'?" in answer.complaint
    assert not place.files()


def test_the_leaderboard_on_disk_grows_with_every_run_and_keeps_its_order(bench: Bench, place: Place) -> None:
    bench("run", "mfcc", "--task", "sounds", *place.where)
    answer = bench("run", "fbank", "--task", "same", "--task", "sounds", *place.where)
    assert "mfcc" not in answer.out
    lines = (place.results / "leaderboard.csv").read_text().splitlines()
    assert lines[0].split(",")[:6:4] == ["upstream", "sounds map rank"]
    assert lines[0].split(",")[5] == "same eer"
    assert [line.split(",")[0] for line in lines[1:]] == ["mfcc", "fbank"]
    assert lines[1].endswith(",,,,,0.5"), "it has no score on the second task"
    assert all(lines[2].split(","))
    before = place.files("**/*")
    bench("run", "mfcc", "--task", "sounds", *place.where)
    assert place.files("**/*") == before


def test_a_quick_look_never_replaces_a_full_result(bench: Bench, place: Place) -> None:
    bench("run", "fbank", "--task", "same", *place.where)
    before = (place.results / "leaderboard.csv").read_bytes()
    limited = bench("run", "fbank", "--task", "same", *place.where, "--limit", "6")
    assert "‡" in limited.out
    assert "1 jobs done" in limited.out
    assert (place.results / "leaderboard.csv").read_bytes() == before


def test_the_tables_on_disk_hold_the_run_asked_for_last(bench: Bench, place: Place) -> None:
    tables = []
    for precision in ("fp32", "bf16", "fp32"):
        answer = bench("run", "fbank", "--task", "same", *place.where, "--precision", precision)
        tables.append((place.results / "results.csv").read_text())
    assert "nothing was left to do" in answer.out
    assert tables[0] == tables[2] != tables[1]


def test_a_damaged_record_is_made_anew(bench: Bench, place: Place) -> None:
    bench("run", "fbank", "--task", "same", *place.where)
    before = place.files("leaderboard.csv")
    next(place.results.glob("runs/*/*/*.json")).write_text("")
    answer = bench("run", "fbank", "--task", "same", *place.where)
    assert "1 jobs done" in answer.out
    assert place.files("leaderboard.csv") == before


def test_names_that_look_like_markup_are_printed_as_they_are(bench: Bench, tmp_path: Path) -> None:
    rows = labelled({split: ["a", "b"] for split in ("train", "valid", "test")}, "[b]:x:")
    write_corpus(tmp_path / "mine", rows)
    answer = bench("data", "check", "mine", "--data", f"mine={tmp_path / 'mine'}", "--home", tmp_path / "home")
    assert "[b]:x:" in answer.out


def test_bad_audio_is_named_skipped_on_request_and_counted(bench: Bench, place: Place) -> None:
    rows = labelled({"train": ["a", "b", "a", "b"], "valid": ["a", "b"], "test": ["a", "b"]})
    root = write_corpus(place.folder / "mine", rows)
    (root / "valid1.wav").write_text("not audio at all")
    (place.folder / "mine.yaml").write_text(
        "tasks: {t: {corpus: mine, target: keyword, head: classification, lr: [1e-2], seeds: [0], epochs: 2}}"
    )
    place.protocol, place.data = ["--protocol", place.folder / "mine.yaml"], ["--data", f"mine={root}"]
    answer = bench("run", "fbank", *place.where)
    assert answer.code == 2
    assert f"{root / 'valid1.wav'} is not readable audio" in answer.complaint
    assert "--skip-bad" in answer.complaint
    answer = bench("run", "fbank", *place.where, "--skip-bad")
    assert answer.code == 0
    assert "t: 1 clips or trials were left out" in answer.out
    assert "t: 1 clips or trials were left out" in (place.results / "leaderboard.md").read_text()


def test_extracted_arrays_are_what_the_upstream_gives(bench: Bench, tmp_path: Path) -> None:
    write_clip(tmp_path / "in" / "a.wav", seconds=0.7, rate=44_100, channels=2)
    write_clip(tmp_path / "in" / "deep" / "b.flac", seconds=1.3, seed=1)
    single = write_clip(tmp_path / "c.ogg", seconds=0.03, seed=2)
    answer = bench("extract", "fbank", tmp_path / "in", single, "-o", tmp_path / "out.npz", "--device", "cpu")
    assert answer.code == 0
    assert "wrote 3 arrays" in answer.out
    arrays = np.load(tmp_path / "out.npz")
    assert sorted(arrays.files) == ["a", "c", "deep/b"]
    upstream = create("fbank")
    files = {"a": tmp_path / "in" / "a.wav", "deep/b": tmp_path / "in" / "deep" / "b.flac", "c": single}
    for key, path in files.items():
        found = inspect_audio(str(path))
        waveform = torch.from_numpy(read_stretch(Stretch(str(path), 0, found.samples, found.rate), 16_000))
        with torch.inference_mode():
            frames, lengths = upstream(waveform[None], torch.tensor([len(waveform)]))
        array = arrays[key]
        assert (array.dtype, array.ndim) == (np.float32, 3)
        assert array.shape == (lengths.item(), upstream.layers, upstream.dim)
        np.testing.assert_allclose(array, frames[0].numpy(), rtol=1e-4, atol=1e-4)


def test_mistakes_of_extraction_are_explained_and_leave_no_file(bench: Bench, tmp_path: Path) -> None:
    write_clip(tmp_path / "x" / "a.wav")
    write_clip(tmp_path / "y" / "a.wav")
    (tmp_path / "bad.wav").write_bytes(b"")
    (tmp_path / "none").mkdir()
    out = tmp_path / "out.npz"
    for audio, name, expected in (
        ([tmp_path / "x", tmp_path / "y"], "fbank", "would both be called 'a' in the output; rename one"),
        ([tmp_path / "bad.wav"], "fbank", "bad.wav is an empty file; repair or remove it"),
        ([tmp_path / "none"], "fbank", "no usable audio in"),
        ([tmp_path / "absent.wav"], "fbank", "there is no file or folder"),
        ([tmp_path / "x"], "fbnk", "did you mean 'fbank'?"),
    ):
        answer = bench("extract", name, *audio, "-o", out, "--device", "cpu")
        assert answer.code == 2
        assert expected in answer.complaint
        assert not out.exists()
    assert (
        "the output is one .npz file" in bench("extract", "fbank", tmp_path / "x", "-o", tmp_path / "o.npy").complaint
    )
    answer = bench("extract", "fbank", tmp_path / "x", tmp_path / "bad.wav", "-o", out, "--skip-bad")
    assert answer.code == 0
    assert "wrote 1 arrays" in answer.out
    assert "left out 1 files" in answer.out


def test_data_is_prepared_listed_and_checked(bench: Bench, place: Place, tmp_path: Path) -> None:
    home = ["--home", tmp_path / "home"]
    answer = bench("data", "prepare", "tones", *place.data, *home)
    assert answer.code == 0
    assert "tones: 300 clips" in answer.out
    answer = bench("data", "check", "tones", *place.data, *place.protocol, *home)
    assert answer.code == 0
    assert "no problems; checked the audio of 300 clips and the splits of 5 tasks" in answer.out
    assert "fsdd" in bench("data", "list", *home).out


def test_a_check_names_every_fault_of_a_corpus(bench: Bench, place: Place) -> None:
    rows = labelled({"train": ["a", "b", "a"], "valid": ["a", "b"], "test": ["a", "c"]})
    rows[0]["speaker"] = "test-speaker"
    root = write_corpus(place.folder / "mine", rows)
    (root / "valid1.wav").write_bytes(b"")
    (place.folder / "mine.yaml").write_text(
        "tasks: {one: {corpus: mine, target: keyword, head: classification},"
        " two: {corpus: mine, target: words, head: transcription}}"
    )
    mine = ["--data", f"mine={root}", "--protocol", place.folder / "mine.yaml", "--home", place.folder / "home"]
    answer = bench("data", "check", "mine", *mine)
    assert answer.code == 2
    sentences = [line for line in answer.err.splitlines() if line.startswith("bench: ")]
    assert len(sentences) == 3
    assert "valid1.wav is an empty file" in sentences[0]
    assert "'test-speaker' first" in sentences[1]
    assert "has a label 'words'" in sentences[2]
    assert "3 problems" in answer.out
    prepared = bench("data", "prepare", "mine", *mine[:2], *mine[4:])
    assert prepared.code == 0
    assert "1 clips cannot be used" in prepared.complaint
    assert bench("data", "check", "nothing", *mine).code == 2


def test_lists_hold_what_there_is(bench: Bench, place: Place) -> None:
    upstreams = bench("list", "upstreams").out
    assert all(name in upstreams for name in ("fbank", "mfcc", "spectrogram", "fbank_cmvn", "hf:FOLDER_OR_ID"))
    assert all(text in upstreams for text in ("s3prl:NAME@FILE", "speechbrain:", "fairseq:FILE", "file.py:function?"))
    assert all(text in upstreams for text in ("ssast@FILE", "atst@FILE", "ssast_mini", "atst_mini"))
    assert "tiny_keyword" in bench("list", "tasks").out
    assert "letters" in bench("list", "tasks", *place.protocol).out
    assert "quick" in bench("list", "suites", *place.protocol).out
    corpora = bench("list", "corpora", "--home", place.home).out
    assert all(name in corpora for name in ("tiny", "fsdd"))


def test_entries_of_s3prl_are_listed_by_family_with_the_reason_where_they_cannot_run(bench: Bench) -> None:
    lines = bench("list", "upstreams").out.splitlines()
    row = [line for line in lines if line.startswith("│ timit_phone ")]
    assert "timit_posteriorgram" in row[0]
    assert "which is no encoder" in " ".join(row)
    (plain,) = [line for line in lines if line.startswith("│ hf_wav2vec2 ")]
    assert plain.split("│")[3].strip() == ""
    entries = {
        "one": HubEntry("one", "first", False, True, "it needs x"),
        "two": HubEntry("two", "first", True, False, ""),
        "three": HubEntry("three", "first", True, False, "it needs x"),
        "four": HubEntry("four", "another", False, True, "it is broken"),
    }
    assert family_rows(entries) == [
        ["another", "four", "it is broken"],
        ["first", "one, two, three", "one, three: it needs x"],
    ]


def test_a_check_measures_costs_in_the_precision_asked_for(bench: Bench, tmp_path: Path) -> None:
    mine = write_encoder(tmp_path / "mine.py")
    for precision in ("fp32", "bf16"):
        answer = bench("check", mine, "--device", "cpu", "--precision", precision)
        assert answer.code == 0, answer.out
        assert "0.33 million per second of audio" in answer.out  # 249 frames of 400 x 16 and 16 x 16 in 5 s
        assert "real-time factor" in answer.out
    assert "no precision 'fp16'" in bench("check", mine, "--precision", "fp16").complaint


def test_a_check_of_an_upstream_ends_with_its_verdict(bench: Bench, tmp_path: Path) -> None:
    good = bench("check", write_encoder(tmp_path / "good.py"), "--device", "cpu")
    assert good.code == 0, good.err
    assert "keeps the contract" in good.out
    bad = bench("check", write_encoder(tmp_path / "bad.py", "not a number"), "--device", "cpu")
    assert bad.code == 1
    assert "breaks the contract in" in bad.complaint
    assert bench("check", "fbnk").code == 2


def test_outcomes_are_readable_without_this_package(bench: Bench, place: Place) -> None:
    bench("run", "fbank", "--task", "same", *place.where)
    (packed,) = place.files("runs/**/*.csv.gz").values()
    lines = gzip.decompress(packed).decode().splitlines()
    assert lines[0] == "enroll,test,target,score,enroll_cluster,test_cluster"
    assert len(lines) > 100


def test_a_table_of_the_users_own_runs_without_code(bench: Bench, place: Place) -> None:
    rows = [
        {"file_name": f"{speaker}{n}.wav", "speaker": speaker, "command": "go" if n % 2 else "stop"}
        for speaker in "abcdefghij"
        for n in range(4)
    ]
    write_corpus(place.folder / "mine", rows)
    table = write_table(place.folder / "mine" / "mine.jsonl", rows)
    (place.folder / "mine.yaml").write_text(
        "tasks:\n  go: {corpus: my_data, target: command, head: classification, lr: [1e-2], seeds: [0], epochs: 2}\n"
    )
    place.protocol, place.data = ["--protocol", place.folder / "mine.yaml"], ["--data", f"my_data={table}"]
    answer = bench("run", "fbank", *place.where)
    assert answer.code == 0
    assert (place.results / "leaderboard.csv").read_text().startswith("upstream,go accuracy,")
    assert "fbank on go: no interval, because all test clips are of one speaker" in answer.err


@pytest.mark.parametrize("command", ["pretrain", "claims"])
def test_help_names_every_method(bench: Bench, command: str) -> None:
    message = bench(command, "--help").out
    assert all(name in message for name in METHODS)


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("ssast@{}", [], "tune an encoder of embeddings from its file of weights, not 'ssast@"),
        ("dino@{}/none.safetensors", [], "no file"),
        ("dino@{}", ["--verify", "tiny_verificaton"], "did you mean 'tiny_verification'"),
        ("dino@{}", ["--precision", "fp8"], "no precision 'fp8'"),
    ],
)
def test_mistakes_about_pseudo_labels_are_told(
    bench: Bench, tmp_path: Path, reference: str, options: list[str], message: str
) -> None:
    answer = bench("pseudo-label", reference.format(tmp_path), "--corpus", tmp_path, "--device", "cpu", *options)
    assert answer.code == 2
    assert message in answer.complaint
