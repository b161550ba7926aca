"""`bench pretrain` with labels, and with only the clips that have them."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmark.errors import UserError
from benchmark.pretraining.checkpoint_files import read_header_facts
from benchmark.pretraining.label_weights import format_label_weights, parse_label_weights
from tests.benchmark import toy_method
from tests.benchmark.pretraining.test_training import Place, stop
from tests.benchmark.sounds import write_corpus, write_table
from tests.conftest import Bench
from upstreams.pretraining.metadata_triplet import STRENGTH, VERSION
from upstreams.pretraining.methods import AudioBatch, Step


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    from upstreams.pretraining.methods import METHODS

    monkeypatch.setitem(METHODS, toy_method.NAME, toy_method.MODULE)


def row(number: int) -> dict[str, str]:
    """Clips of four speakers and two languages, some without labels, and noise."""
    speaker = "" if number >= 12 else f"s{number % 4}"
    language = "" if number >= 10 else f"l{number % 2}"
    return {"file_name": f"{number:02d}.wav", "split": "pool", "speaker": speaker, "language": language}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken"), map(row, range(14)))


class Spoken(Place):
    """The folder in which one test pre-trains on a corpus with labels."""

    def arguments(self, method: str = "toy", out: Path | None = None) -> list[str]:
        corpus = ["--corpus", "mine", "--data", f"mine={self.audio}"]
        return ["pretrain", method, *corpus, *super().arguments(method, out)[4:]]

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.out.with_suffix(".json").read_text()))

    @property
    def identity(self) -> dict[str, Any]:
        found = read_header_facts(self.out)
        assert found is not None
        return dict(found["identity"])


@pytest.fixture
def place(bench: Bench, spoken: Path, tmp_path: Path) -> Spoken:
    return Spoken(bench, spoken, tmp_path)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method learns from labels by default; the corpus lacks one of their kinds."""
    monkeypatch.setattr(toy_method.Toy, "metadata", {"speaker": 2.0, "mood": 1.0})


def equal(one: Path, other: Path) -> bool:
    weights, others = load_file(one), load_file(other)
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_labels_are_learnt_from_and_told(place: Spoken) -> None:
    answer = place("--metadata", "speaker=1,language=0.5", "--steps", 20)
    assert answer.code == 0, answer.err
    terms = place.facts["curve"][-1]["terms"]
    assert terms["triplet"] > 0
    assert terms["paired"] > 0.5
    assert place.facts["data"]["labels"] == [
        {"kind": "language", "weight": 0.5, "clips": 10, "values": 2},
        {"kind": "speaker", "weight": 1.0, "clips": 12, "values": 4},
    ]
    text = place.out.with_suffix(".md").read_text()
    assert "for 20 steps with labels of language (weight 0.5) and speaker (weight 1)." in text
    assert "| label speaker | 4 values, on 12 clips |" in text
    assert place.identity["metadata"] == "language=0.5,speaker=1"
    plain = place.folder / "plain.safetensors"
    assert place("--steps", 20, out=plain).code == 0
    assert not equal(place.out, plain)
    assert load_file(place.out).keys() == load_file(plain).keys()
    assert "steps without labels." in plain.with_suffix(".md").read_text()


def test_without_labels_nothing_in_the_file_tells_of_them(place: Spoken) -> None:
    assert place("--steps", 2).code == 0
    assert not {"metadata", "labels", "only", "origin"} & place.identity.keys()
    assert not {"labels", "only", "without"} & place.facts["data"].keys()
    assert "origin" not in place.facts


def test_the_command_on_the_card_makes_the_same_weights_from_labels(place: Spoken) -> None:
    labels = ["--metadata", "language=0.1234567,speaker=3", "--strength", 0.7654321]
    options = [*labels, "--only", "speaker", "--steps", 9, "--batch", 6]
    assert place(*options, "--accumulate", 2).code == 0
    first, words = place.out.read_bytes(), place.facts["command"].split()
    assert {"language=0.1234567,speaker=3", "--strength", "0.7654321", "--only", "speaker"} < set(words)
    place.out.unlink()
    answer = place.bench(*words[1:], "--home", place.folder / "home", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert place.out.read_bytes() == first


def test_a_training_with_labels_that_was_stopped_ends_in_the_same_bytes(
    place: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_method.Toy, "metadata", {"speaker": 1.0, "language": 0.5})
    whole = place.folder / "whole.safetensors"
    assert place(out=whole).code == 0
    assert "the disk is full" in stop(place, monkeypatch, 7).complaint
    assert "resumes after step 7" in place().out
    assert place.out.read_bytes() == whole.read_bytes()


def test_the_strength_of_labels_is_the_usual_one_unless_given(place: Spoken) -> None:
    options = ["--metadata", "speaker=1", "--steps", 9, "--batch", 8]
    found = {}
    for strength in ("", "0", str(STRENGTH), "5"):
        found[strength] = Spoken(place.bench, place.audio, place.folder / f"at{strength}")
        answer = found[strength](*options, *(["--strength", strength] if strength else []))
        assert answer.code == 0, answer.err
    terms = {strength: each.facts["curve"][-1]["terms"] for strength, each in found.items()}
    for strength, each in terms.items():
        added = float(strength or STRENGTH) * each["triplet"]  # the last step is past the ramp
        assert each["loss"] == pytest.approx(each["own"] + added)
    assert terms["0"]["triplet"] > 0, "and yet nothing of it is learnt"
    assert equal(found[""].out, found[str(STRENGTH)].out)
    assert not equal(found["5"].out, found[""].out)
    assert "strength" not in {*found[""].identity, *found[""].facts["data"]}
    assert found["0"].identity["strength"] == found["0"].facts["data"]["strength"] == 0
    assert "| strength of the term on labels | 5 |" in found["5"].out.with_suffix(".md").read_text()
    assert "strength 5, not 2" in found["5"](*options, "--strength", 2).complaint


def test_the_help_tells_the_usual_strength(place: Spoken) -> None:
    assert f"[default: {STRENGTH}]" in " ".join(place.bench("pretrain", "--help").out.split())


def test_labels_that_tell_no_clips_apart_are_told_and_no_obstacle(place: Spoken, tmp_path: Path) -> None:
    table = [{**row(number), "corpus": "one", "name": f"n{number}"} for number in range(14)]
    (tmp_path / "mine").mkdir()
    for each in table:
        (tmp_path / "mine" / each["file_name"]).symlink_to(place.audio / each["file_name"])
    write_table(tmp_path / "mine" / "metadata.csv", table)
    place.audio = tmp_path / "mine"
    answer = place("--steps", 2, "--metadata", "corpus=1,name=1,speaker=1")
    assert answer.code == 0, answer.err
    kinds = [
        kind for kind in ("corpus", "name", "speaker") if f"labels '{kind}' of mine cannot be learnt from" in answer.out
    ]
    assert kinds == ["corpus", "name"]


@pytest.mark.usefixtures("own")
def test_a_methods_own_labels_are_taken_as_far_as_there_are_any(place: Spoken) -> None:
    answer = place("--steps", 5)
    assert answer.code == 0, answer.err
    assert "no clip of mine has a label 'mood': the method learns without it" in answer.out
    assert place.identity["metadata"] == "speaker=2"
    same = place.folder / "same.safetensors"
    answer = place("--steps", 5, "--metadata", "speaker=2", out=same)
    assert "mood" not in answer.out
    assert same.read_bytes() == place.out.read_bytes()


@pytest.mark.usefixtures("own")
def test_a_methods_own_labels_may_be_turned_off(place: Spoken, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = place("--steps", 5, "--metadata", "none")
    assert "mood" not in answer.out
    assert "metadata" not in place.identity
    assert "--metadata none" in place.facts["command"]
    assert "triplet" not in place.facts["curve"][-1]["terms"]
    monkeypatch.setattr(toy_method.Toy, "metadata", MappingProxyType({}))
    plain = place.folder / "plain.safetensors"
    assert place("--steps", 5, out=plain).code == 0
    assert plain.read_bytes() == place.out.read_bytes()


@pytest.mark.usefixtures("own")
def test_a_folder_without_labels_is_learnt_from_without(place: Spoken) -> None:
    answer = place.bench(*Place.arguments(place), "--steps", 2)
    assert answer.code == 0, answer.err
    assert answer.out.count("has a label") == 2
    assert "metadata" not in place.identity


def test_only_clips_with_a_label_are_heard(place: Spoken) -> None:
    answer = place("--only", "speaker", "--steps", 2)
    assert answer.code == 0, answer.err
    assert "12 clips with a label 'speaker' (2 have none)" in answer.out
    data = place.facts["data"]
    assert (data["clips"], data["only"], data["without"]) == (12, "speaker", 2)
    assert place.identity["only"] == "speaker"
    text = place.out.with_suffix(".md").read_text()
    assert "| only those with a label | speaker; 2 have none |" in text
    assert "steps without labels" in text


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ["--metadata", "mood=1"],
            "no clip of mine has a label 'mood', which --metadata names; it has language, speaker",
        ),
        (["--metadata", "speaker"], "'speaker' in --metadata is not of the form KIND=WEIGHT"),
        (["--metadata", "speaker=0"], "'speaker=0' in --metadata is not"),
        (["--metadata", "speaker=-1"], "with a positive number"),
        (["--metadata", "speaker=nan"], "with a positive number"),
        (["--metadata", "speaker=inf"], "with a positive number"),
        (["--metadata", "speaker=much"], "with a positive number"),
        (["--metadata", "=1"], "'=1' in --metadata"),
        (["--metadata", ""], "or give --metadata none"),
        (["--metadata", "speaker=1,speaker=2"], "names a kind of label twice"),
        (
            ["--metadata", "langauge=1"],
            "has a label 'langauge', which --metadata names; did you mean 'language'? it has",
        ),
        (["--only", "mood"], "no clip of mine has a label 'mood', which --only requires; it has language, speaker"),
        (["--only", "speakers"], "which --only requires; did you mean 'speaker'? it has language, speaker"),
        (["--metadata", "speaker=1e308,language=1e308"], "weights of language and speaker are too large"),
        (["--metadata", "speaker=1", "--strength", -1], "--strength -1 is not a number of 0 or more"),
        (["--metadata", "speaker=1", "--strength", "inf"], "--strength inf is not a number of 0 or more"),
        (["--metadata", "speaker=1", "--strength", "nan"], "--strength nan is not a number of 0 or more"),
        (["--strength", 1], "--strength needs labels to learn from, and there are none"),
        (["--metadata", "none", "--strength", 0], "--strength needs labels to learn from, and there are none"),
    ],
)
def test_mistakes_about_labels_are_told_before_anything_is_trained(
    place: Spoken, options: list[object], complaint: str
) -> None:
    answer = place(*options)
    assert answer.code == 2, answer.err
    assert complaint in answer.complaint
    assert not place.left()


def test_weights_from_other_labels_are_not_overwritten(place: Spoken, tmp_path: Path) -> None:
    options = ["--steps", 2, "--metadata", "speaker=1"]
    assert place(*options).code == 0
    assert "metadata speaker=1, not language=1" in place(*options[:3], "language=1").complaint
    table = [{**row(number), "speaker": f"s{number % 3}"} for number in range(14)]
    for each in table:
        (tmp_path / "other" / each["file_name"]).parent.mkdir(exist_ok=True)
        (tmp_path / "other" / each["file_name"]).write_bytes((place.audio / each["file_name"]).read_bytes())
    write_table(tmp_path / "other" / "metadata.csv", table)
    place.audio = tmp_path / "other"
    answer = place(*options)
    assert answer.code == 2
    assert "labels" in answer.complaint
    place.out.unlink()
    assert place("--steps", 2).code == 0, "but these labels decide nothing where they are not used"
    assert "labels" not in place.identity


def test_weights_of_another_version_of_the_term_are_not_taken(place: Spoken, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--steps", 1, "--metadata", "speaker=1"]
    assert place(*options).code == 0
    monkeypatch.setattr("upstreams.pretraining.metadata_triplet.VERSION", VERSION + 1)
    assert "out.safetensors was made with code " in place(*options).complaint


def test_files_that_a_methods_options_name_are_told(place: Spoken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_method.Toy, "origin", {"teacher.safetensors": "abc"})
    assert place("--steps", 1).code == 0
    assert place.identity["origin"] == {"teacher.safetensors": "abc"}
    assert "- teacher.safetensors: SHA-256 `abc`" in place.out.with_suffix(".md").read_text()
    monkeypatch.setattr(toy_method.Toy, "origin", {"teacher.safetensors": "def"})
    assert "origin" in place("--steps", 1).complaint


def test_a_method_is_given_batches_in_which_most_clips_have_their_like(
    place: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AudioBatch] = []
    forward = toy_method.Toy.forward

    def noted(method: toy_method.Toy, batch: AudioBatch, done: float) -> Step:
        seen.append(batch)
        return forward(method, batch, done)

    monkeypatch.setattr(toy_method.Toy, "forward", noted)
    assert place("--metadata", "speaker=1", "--steps", 14, "--batch", 8, "--accumulate", 2).code == 0
    assert len(seen) == 28
    numbers = [batch.labels["speaker"].tolist() for batch in seen]
    known = [number for row in numbers for number in row if number >= 0]
    alone = [number for row in numbers for number in row if number >= 0 and row.count(number) == 1]
    assert set(known) == {0, 1, 2, 3}
    assert len(alone) < 0.3 * len(known)


@pytest.mark.parametrize("text", ["none", "a=1", "a=0.1,b=2", "a=1e-07"])
def test_weights_are_told_as_they_are_read(text: str) -> None:
    weights = parse_label_weights(text)
    assert weights is not None
    assert format_label_weights(dict(weights)) == text
    assert parse_label_weights(None) is None


def test_the_order_of_kinds_and_spaces_between_them_change_nothing() -> None:
    assert (
        parse_label_weights("b=2,a=1")
        == parse_label_weights("a=1,b=2")
        == parse_label_weights("a = 1, b = 2 ")
        == (("a", 1.0), ("b", 2.0))
    )
    with pytest.raises(UserError):
        parse_label_weights("a=1,")
