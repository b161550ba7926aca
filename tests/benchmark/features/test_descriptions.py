"""Cards are kept for as long as what is behind them stays the same, and tell what an upstream costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark import files
from benchmark.features import descriptions
from benchmark.features.descriptions import cost_of, describe, local_files
from benchmark.features.encoding import load_upstream
from benchmark.records import Results
from benchmark.values import Card, Setup
from tests.benchmark.encoders import write_encoder
from tests.upstreams.models import SMALL, build, save, waveform_extractor
from tests.upstreams.toys import Toy, registered, save_toy, toy
from upstreams import create
from upstreams.base import Upstream, fingerprint
from upstreams.precision import with_precision


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    load_upstream.cache_clear()
    return Setup(tmp_path / "home", tmp_path / "results")


def kept(setup: Setup) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (setup.home / "cards").iterdir()}


def test_a_card_is_kept_for_as_long_as_nothing_behind_it_changes(setup: Setup) -> None:
    first, before = describe("fbank", setup), kept(setup)
    assert describe("fbank", setup) == first
    assert kept(setup) == before
    for path in (setup.home / "cards").iterdir():
        path.write_text("damaged")
    assert describe("fbank", setup).identity == first.identity
    assert (first.hop, first.window, first.sample_rate, first.parameters) == (160, 400, 16_000, 0)


def test_an_edit_in_any_sub_folder_of_the_package_makes_cards_stale(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, compute = [], descriptions._describe
    monkeypatch.setattr(files, "PACKAGES", tmp_path / "tree")
    monkeypatch.setattr(
        descriptions, "_describe", lambda name, precision: computed.append(name) or compute(name, precision)
    )
    for count, place in enumerate(("base.py", "families/codec.py", "families/deeper/codec.py", "seeds/codec.py"), 1):
        path = tmp_path / "tree" / "upstreams" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        for text, calls in (("LAYERS = 3\n", 2 * count - 1), ("LAYERS = 12\n", 2 * count)):
            path.write_text(text)
            for _ in range(2):
                describe("fbank", setup)
                assert len(computed) == calls, place


def test_a_changed_file_of_the_users_is_a_changed_upstream(setup: Setup, tmp_path: Path) -> None:
    name = write_encoder(tmp_path / "mine.py")
    prints = []
    for text in ("abs()", "square()", "abs()"):
        path = tmp_path / "mine.py"
        write_encoder(path)
        path.write_text(path.read_text().replace("abs()", text))
        load_upstream.cache_clear()
        prints.append(describe(name, setup).fingerprint)
    assert prints[0] == prints[2] != prints[1]
    assert describe(name, setup).parameters == 16 * 400 + 16 + 16 * 16 + 16


def test_a_checkpoint_replaced_under_the_same_path_is_a_changed_upstream_with_another_origin(
    setup: Setup, tmp_path: Path
) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        name = save(build("hubert", **SMALL), waveform_extractor(True), tmp_path / "model")
        load_upstream.cache_clear()
        found.append(describe(name, setup))
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    assert found[0].origin == found[1].origin
    changed = {key for key, value in found[2].origin.items() if found[0].origin[key] != value}
    assert changed == {"model.safetensors"}
    before = kept(setup)
    load_upstream.cache_clear()
    assert describe(name, setup) == found[2]
    assert load_upstream.cache_info().misses == 0
    assert kept(setup) == before


@pytest.mark.parametrize("end", ["", "?gain=2", "@random"])
def test_the_checkpoint_of_a_registered_name_is_watched_and_its_card_kept(
    setup: Setup, tmp_path: Path, end: str
) -> None:
    found = []
    with registered(toy):
        for seed in (0, 0, 1):
            name = f"toy@{save_toy(tmp_path / 'a.pt', seed, dim=3 + seed)}{end}"
            load_upstream.cache_clear()
            found.append(describe(name, setup))
        assert found[0] == found[1]
        assert found[0].fingerprint != found[2].fingerprint
        assert (found[0].dim, found[2].dim) == (3, 4)
        assert set(found[2].origin) == {"a.pt"}
        load_upstream.cache_clear()
        assert describe(name, setup) == found[2]
        assert load_upstream.cache_info().misses == 0


def test_shipped_weights_are_watched_and_the_cards_of_their_names_kept(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def toy_mini(random: bool = False) -> Toy:
        return toy(str(tmp_path / "toy_mini.safetensors"), random)

    monkeypatch.setattr(descriptions, "WEIGHTS", tmp_path)
    with registered(toy_mini):
        for reference in ("toy_mini", "toy_mini@random"):
            found = []
            for seed in (0, 0, 1):
                save_toy(tmp_path / "toy_mini.safetensors", seed, dim=3 + seed)
                load_upstream.cache_clear()
                found.append(describe(reference, setup))
            assert found[0] == found[1]
            assert (found[0].dim, found[2].dim) == (3, 4)
            load_upstream.cache_clear()
            assert describe(reference, setup) == found[2]
            assert load_upstream.cache_info().misses == 0


def test_precision_is_part_of_a_card_and_frames_are_counted_as_the_upstream_does(setup: Setup) -> None:
    half = describe("mfcc", replace(setup, precision="bf16"))
    card = describe("mfcc", setup)
    assert half.identity == card._replace(precision="bf16").identity
    samples = [400, 401, 559, 560, 1, 16_000, 123_457]
    assert [card.frames(count) for count in samples] == create("mfcc").frame_lengths(torch.tensor(samples)).tolist()


def test_a_cost_is_measured_once_for_each_upstream_and_precision(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    card = describe("fbank", setup)
    assert card.cost.keys() == {"parameters", "macs_per_second", "real_time_factor", "threads"}
    assert (card.cost["parameters"], card.cost["threads"]) == (0, torch.get_num_threads())
    assert card.cost["macs_per_second"] == pytest.approx(257 * 80 * 498 / 5, rel=1e-3)
    assert 0 < (card.cost["real_time_factor"] or 0) < 10
    measured = []
    monkeypatch.setattr(
        descriptions, "_measure", lambda card, setup: measured.append(setup.precision) or {"parameters": 7}
    )
    assert cost_of(card, setup) == card.cost
    assert cost_of(card, replace(setup, precision="bf16")) == {"parameters": 7}
    assert measured == ["bf16"]
    cost_of(card._replace(fingerprint="other"), setup)
    assert measured == ["bf16", "fp32"]


def test_work_that_cannot_be_counted_does_not_stop_a_run(setup: Setup, tmp_path: Path) -> None:
    name = write_encoder(tmp_path / "mine.py")
    path = tmp_path / "mine.py"
    secret = "from torch.utils._python_dispatch import _get_current_dispatch_mode as mode"
    text = path.read_text().replace("import torch\n", f"import torch\n{secret}\n", 1)
    path.write_text(text.replace("counts = self", "assert mode() is None; counts = self"))
    cost = describe(name, setup).cost
    assert cost["macs_per_second"] is None
    assert cost["real_time_factor"]


@pytest.mark.parametrize("template", ["hf:{}/folder", "speechbrain:{}/folder", "s3prl:hf_hubert_custom@{}/folder"])
def test_the_files_of_a_folder_are_all_that_are_in_it(template: str, tmp_path: Path) -> None:
    for name in ("config.json", "deeper/model.bin"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    reference = template.format(tmp_path)
    wanted = [tmp_path / "folder" / "config.json", tmp_path / "folder" / "deeper" / "model.bin"]
    assert local_files(reference) == local_files(f"{reference}@random") == wanted


def test_the_files_of_a_reference_are_its_checkpoint_and_what_its_arguments_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a@b?c.pt", "a.pt", "config file.yaml", "hubert", "fbank", "main"):
        (tmp_path / name).touch()
    here = Path()
    assert local_files("fairseq:a@b?c.pt") == [here / "a@b?c.pt"]
    assert local_files("s3prl:tera_local@a.pt?options_config=config%20file.yaml&layers=3@random") == [
        here / "a.pt",
        here / "config file.yaml",
    ]
    assert local_files(f"fairseq:{tmp_path}/a.pt@random") == [tmp_path / "a.pt"]
    assert local_files("ssast@a.pt") == local_files("ssast@a.pt?size=main&x=hubert@random") == [here / "a.pt"]
    assert local_files("s3prl:x@a.py:b") == local_files("ssast@a.py?b=c.py:d") == []
    none = ("fbank", "s3prl:hubert", "hf:owner/name@main", "mine.py:build?ckpt=a.pt", "mine@a.py:build?ckpt=a.pt")
    for reference in (*none, "hf:", "s3prl:x@absent", "ssast@absent", "ssast@", "ssast?x=main", "ssast@random"):
        assert local_files(reference) == []


def test_committed_spectral_records_are_of_the_upstreams_as_they_are_now() -> None:
    records, _ = Results(Path(__file__).parents[3] / "results").read_all()
    found = {record.upstream["name"]: record.upstream["fingerprint"] for record in records}
    for name in ("fbank", "fbank_cmvn", "mfcc", "spectrogram"):
        assert found[name] == fingerprint(create(name))


def test_half_precision_comes_from_the_same_files() -> None:
    upstream: Upstream = create("fbank")
    upstream.origin, upstream.source = {"a": "b"}, "c"
    assert (with_precision("bf16", upstream).origin, with_precision("bf16", upstream).source) == ({"a": "b"}, "c")


def test_a_card_counts_identity_without_cost_and_origin() -> None:
    card = Card("x", "f", "fp32", 16_000, 160, 400, 1, 4, 1, 4, 5, {"threads": 1}, {"a": "b"})
    assert list(card.identity) == list(Card._fields[:-2])
    assert card.identity == card._replace(cost={}, origin={}).identity
