from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import upstreams
from tests.upstreams.models import refusal_message
from tests.upstreams.toys import registered, save_toy, toy
from upstreams import create, entries, module_paths, names, register, scan_module
from upstreams.base import UpstreamError, fingerprint
from upstreams.families.user_files import lies_in

MINE = '''
import torch
from torch import nn
from neighbour import HOP
from upstreams.base import Features, Upstream, UpstreamError, valid


class Energy(Upstream):
    hop, window, layers, dim = HOP, HOP, 1, 1

    def __init__(self):
        super().__init__()
        self.gain = nn.Linear(1, 1)

    def forward(self, waveforms, lengths):
        counts = self.frame_lengths(lengths)
        frames = waveforms[:, : int(counts.max()) * HOP].unflatten(1, (-1, HOP)).square().mean(2)
        return Features(frames[:, :, None, None] * valid(counts, frames.shape[1])[:, :, None, None], counts)


def energy(random=False):
    """Energy."""
    return Energy()


def scaled(layers: int, ckpt="none", name: str = "", loud=False):
    """Energy with a layer for each time it is told of."""
    upstream = Energy()
    upstream.layers, upstream.told = layers, (layers, ckpt, name, loud)
    return upstream


def fixed():
    return Energy().train()


def wrong():
    return nn.Linear(1, 1)


def incomplete():
    upstream = Energy()
    upstream.hop = 0
    return upstream


def failing():
    return {}["nothing"]


def refusing():
    raise UpstreamError("bring your own weights")
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("HOP = 160\n")
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


@pytest.fixture
def known_toy() -> Iterator[None]:
    with registered(toy):
        yield


def test_names_are_listed_without_importing_torch() -> None:
    code = "import sys, upstreams; print(len(upstreams.names())); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = done.stdout.split()
    assert int(count) >= 15
    assert imported == "False"


def test_a_builder_is_listed_whatever_sub_folder_its_module_lies_in(tmp_path: Path) -> None:
    copy = tmp_path / "upstreams"
    shutil.copytree(upstreams.PACKAGE, copy, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    added = {"shallow": "mine", "deep": "mine.deeper", "among_others": "families"}
    for name, folder in added.items():
        path = copy.joinpath(*folder.split("."), f"{name}_file.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'from upstreams import register\n\n\n@register\ndef {name}():\n    """It is {name}."""\n')
    code = """
import importlib, upstreams
for name, description in upstreams.names().items():
    print(name, upstreams.entries()[name].module, description, sep="|")
for name in ("shallow", "deep", "among_others"):
    assert callable(getattr(importlib.import_module(upstreams.entries()[name].module), name))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    listed = {tuple(line.split("|")) for line in done.stdout.splitlines()}
    shipped = {entry[:3] for path in module_paths() for entry in scan_module(path)}
    assert listed - shipped == {
        (name, f"upstreams.{folder}.{name}_file", f"It is {name}.") for name, folder in added.items()
    }
    assert shipped < listed


def test_every_name_has_a_description_and_a_builder_of_that_name() -> None:
    import importlib

    for name, entry in entries().items():
        assert len(entry.description) > 20, name
        assert callable(getattr(importlib.import_module(entry.module), name)), name


def test_every_name_without_weights_is_built_and_holds_the_contract_of_shapes() -> None:
    for name, entry in entries().items():
        if not entry.trainable:
            upstream = create(name)
            frames, lengths = upstream(torch.zeros(2, 8_000), torch.tensor([8_000, 500]))
            assert frames.shape[2:] == (upstream.layers, upstream.dim), name
            assert torch.equal(lengths, upstream.frame_lengths(torch.tensor([8_000, 500]))), name
            assert not upstream.training


def test_unknown_names_are_answered_with_the_nearest_one() -> None:
    assert refusal_message("fbnak") == "no upstream 'fbnak'; did you mean 'fbank'? see: bench list upstreams"
    assert refusal_message("wavlm_bas").startswith("no upstream 'wavlm_bas'; did you mean 'wavlm_base'?")
    assert refusal_message("FBANK").startswith("no upstream 'FBANK'; did you mean 'fbank'?")
    assert refusal_message("tera_local") == "no upstream 'tera_local'; write s3prl:tera_local for that of s3prl's hub"
    assert refusal_message("tera_local@tera.pt").startswith(
        "no upstream 'tera_local@tera.pt'; write s3prl:tera_local@tera.pt"
    )
    assert refusal_message("zzzzzz") == "no upstream 'zzzzzz'; see: bench list upstreams"
    assert refusal_message("mine.py").endswith("a reference to your own upstream is mine.py:function")
    assert refusal_message("facebook/hubert-base-ls960").endswith("is written hf:facebook/hubert-base-ls960")
    assert refusal_message("nofamily:thing").startswith("no family of upstreams in 'nofamily:thing'")


def test_what_has_no_weights_has_no_random_twin() -> None:
    assert "no random twin of 'fbank'" in refusal_message("fbank@random")


def test_functions_registered_elsewhere_are_found_too() -> None:
    from upstreams.spectral import Fbank

    def registered_by_a_test():
        """Made by a test."""
        return Fbank()

    register(registered_by_a_test)
    try:
        assert names()["registered_by_a_test"] == "Made by a test."
        assert isinstance(create("registered_by_a_test"), Fbank)
    finally:
        del upstreams._registered["registered_by_a_test"]


@pytest.mark.usefixtures("known_toy")
@pytest.mark.parametrize("name", ["a.pt", "a@b.pt", "deep er/a:1.pt", "a&b=c@random.pt"])
def test_a_registered_name_takes_a_checkpoint_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    path = save_toy(tmp_path / name, seed=1)
    upstream = create(f"toy@{path}?gain=2")
    assert upstream.dim == 3
    assert torch.equal(upstream.state_dict()["matrix"], torch.load(path)["matrix"])
    assert upstream.settings() == {"gain": 2}
    assert set(upstream.origin) == {path.name}
    twin = create(f"toy@{path}?gain=2@random")
    assert (twin.dim, twin.settings()) == (3, {"gain": 2})
    assert fingerprint(twin) != fingerprint(upstream)
    assert fingerprint(twin) == fingerprint(create(f"toy@{path}?gain=2@random"))


@pytest.mark.usefixtures("known_toy")
def test_a_checkpoint_is_found_from_where_one_stands_and_in_ones_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fingerprint(create(f"toy@{save_toy(tmp_path / 'a.pt', seed=1)}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [fingerprint(create(f"toy@{path}")) for path in ("a.pt", "./a.pt", "~/a.pt")] == [wanted] * 3


@pytest.mark.usefixtures("known_toy")
def test_arguments_of_a_registered_name_need_no_checkpoint() -> None:
    assert create("toy@random").dim == 2
    assert create("toy?size=large@random").dim == 4
    assert create("toy?size=large&gain=0.5").settings() == {"gain": 0.5}
    assert fingerprint(create("toy?size=large@random")) != fingerprint(create("toy@random"))


@pytest.mark.usefixtures("known_toy")
def test_a_checkpoint_that_is_none_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for none in ("absent.pt", "folder", "pipe", ""):
        assert refusal_message(f"toy@{none}?gain=2") == f"no file '{none}'; a reference to a checkpoint is toy@FILE"
        assert refusal_message(f"toy@{none}@random") == f"no file '{none}'; a reference to a checkpoint is toy@FILE"
    assert refusal_message("toy@a\0.pt") == "'a?.pt' contains characters that no path can contain; check what was typed"
    assert refusal_message(f"toy@{'x' * 5000}").endswith("give another")
    assert refusal_message("toy@~no_such_user/a.pt").endswith("give the whole path")
    assert refusal_message("toy:a.pt") == "no family of upstreams 'toy'; a checkpoint follows '@': toy@a.pt"


def test_names_that_read_no_checkpoint_say_so() -> None:
    assert refusal_message("fbank@a.pt") == "'fbank' takes no checkpoint; drop '@a.pt'"
    start = "'hubert_base' takes no checkpoint; drop '@a.pt', or write before it which family it is of: hf:, "
    assert refusal_message("hubert_base@a.pt").startswith(start)
    assert refusal_message("hubert_base@a.pt@random").startswith(start)
    assert refusal_message("fbank?bands=40") == "no argument 'bands' of 'fbank'; it takes: none"


@pytest.mark.usefixtures("known_toy")
def test_arguments_that_a_registered_name_does_not_take_are_told(tmp_path: Path) -> None:
    path = save_toy(tmp_path / "a.pt", seed=1)
    assert refusal_message("toy?gian=2") == "no argument 'gian' of 'toy'; did you mean 'gain'?"
    assert refusal_message(f"toy@{path}?zzz=2") == f"no argument 'zzz' of 'toy@{path}'; it takes: size, gain, fast"
    assert refusal_message(f"toy?checkpoint={path}") == "no argument 'checkpoint' of 'toy'; it is written NAME@FILE"
    assert refusal_message("toy?random=true") == "no argument 'random' of 'toy'; it is written NAME@random"
    assert refusal_message("toy?gain=loud") == "the argument 'gain' of 'toy' is 'loud'; give a number"
    assert refusal_message("toy?gain=true") == "the argument 'gain' of 'toy' is 'true'; give a number"
    assert refusal_message("toy?gain=null") == "the argument 'gain' of 'toy' is 'null'; give a number"
    assert refusal_message("toy?fast=1") == "the argument 'fast' of 'toy' is '1'; give true or false"
    assert refusal_message("toy?gain=1&gain=2").startswith("an argument of 'toy' is given twice")
    assert refusal_message("toy@a.pt@b.pt").startswith("no file 'a.pt@b.pt'")


@pytest.mark.usefixtures("known_toy")
def test_misspelt_names_with_a_checkpoint_are_answered_with_those_that_take_one() -> None:
    assert refusal_message("toi@a.pt") == "no upstream 'toi@a.pt'; did you mean 'toy@a.pt'? see: bench list upstreams"
    assert refusal_message("toi@runs/a.pt").startswith("no upstream 'toi@runs/a.pt'; did you mean 'toy@runs/a.pt'?")
    assert refusal_message("TOY@/a.pt?gain=2@random").startswith(
        "no upstream 'TOY@/a.pt?gain=2'; did you mean 'toy@/a.pt?gain=2'?"
    )
    assert refusal_message("toi?gain=2").startswith("no upstream 'toi?gain=2'; did you mean 'toy?gain=2'?")
    assert refusal_message("fbnak@a.pt") == "no upstream 'fbnak@a.pt'; see: bench list upstreams"
    assert refusal_message("owner/name@main").endswith("is written hf:owner/name@main")
    for name in ("ssast_frame_base", "ssast_patch_base", "ssast_frame_base@a.pt"):
        assert refusal_message(name) == f"no upstream '{name}'; write s3prl:{name} for that of s3prl's hub"


@pytest.mark.usefixtures("known_toy")
def test_entries_know_what_a_builder_takes_without_importing_it(tmp_path: Path) -> None:
    assert entries()["toy"][2:] == ("Made for a test.", True, True)
    assert (entries()["hubert_base"][3:], entries()["fbank"][3:]) == ((True, False), (False, False))
    (tmp_path / "mine.py").write_text(
        'import nothing_such\n\n@register\ndef mine(*, checkpoint: str = "", size=1):\n    """Mine."""\n'
    )
    assert [entry[2:] for entry in scan_module(tmp_path / "mine.py", tmp_path)] == [("Mine.", False, True)]


def test_a_function_of_ones_own_may_call_an_argument_checkpoint(mine: str) -> None:
    Path(mine).write_text(MINE + '\n\ndef loaded(checkpoint=""):\n    return scaled(1, checkpoint)\n')
    assert create(f"{mine}:loaded?checkpoint=a.pt").told[1] == "a.pt"  # type: ignore[index]
    assert "the argument 'layers' of" in refusal_message(f"{mine}:scaled?layers=many")


def test_a_function_in_a_file_of_ones_own_is_an_upstream_in_eval_mode(mine: str) -> None:
    upstream = create(f"{mine}:fixed")
    assert not upstream.training
    assert upstream.summarize(torch.ones(1, 1_600), torch.tensor([1_600])).item() == 1.0


def test_a_relative_path_works_too(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(mine).parent)
    assert fingerprint(create("./mine.py:energy")) == fingerprint(create(f"{mine}:energy"))
    assert fingerprint(create("mine.py:energy")) == fingerprint(create(f"{mine}:energy"))


def test_editing_the_file_changes_the_fingerprint(mine: str) -> None:
    before = fingerprint(create(f"{mine}:energy"))
    assert fingerprint(create(f"{mine}:energy")) == before
    Path(mine).write_text(MINE.replace("square()", "abs()"))
    assert fingerprint(create(f"{mine}:energy")) != before


def test_a_file_imports_its_own_neighbours_and_changes_its_fingerprint_with_them(tmp_path: Path) -> None:
    for folder, scale in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(MINE + "from neighbour import SCALE\nEnergy.SCALE = SCALE\n")
        (tmp_path / folder / "neighbour.py").write_text(f"HOP, SCALE = 160, {scale}\n")
    one, two = (f"{tmp_path}/{folder}/mine.py:energy" for folder in ("one", "two"))
    assert [create(each).SCALE for each in (one, two, one)] == [1, 2, 1]
    prints = [fingerprint(create(each)) for each in (one, two, one)]
    assert prints[0] == prints[2] != prints[1]


def test_of_this_project_a_file_at_its_root_takes_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(upstreams.__file__).parents[1]
    assert not lies_in(root, "upstreams.spectral", sys.modules["upstreams.spectral"])
    assert not lies_in(Path(sys.prefix), "torch", torch)


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(mine: str) -> None:
    state = torch.get_rng_state()
    one, other = create(f"{mine}:energy@random"), create(f"{mine}:energy@random")
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(one) == fingerprint(other)
    torch.manual_seed(123)
    assert fingerprint(create(f"{mine}:energy@random")) == fingerprint(one)
    assert "no random twin of" in refusal_message(f"{mine}:fixed@random")


def test_mistakes_in_ones_own_file_are_told_with_the_line(mine: str) -> None:
    line = MINE.splitlines().index('    return {}["nothing"]') + 1
    assert refusal_message(f"{mine}:failing") == f"error in your file mine.py, line {line}: KeyError: 'nothing'"
    assert refusal_message(f"{mine}:refusing") == "bring your own weights"
    assert "gives a Linear" in refusal_message(f"{mine}:wrong")
    assert "has hop=0" in refusal_message(f"{mine}:incomplete")
    assert refusal_message(f"{mine}:absent").startswith("no function 'absent' in")
    Path(mine).write_text("import torch\ndef broken(:\n    pass\n")
    assert refusal_message(f"{mine}:broken").startswith("error in your file mine.py, line 2: SyntaxError")
    Path(mine).write_text("import sys\nsys.exit(3)\n")
    assert refusal_message(f"{mine}:broken").startswith("error in your file mine.py, line 2: SystemExit")
    Path(mine).write_text("import torch\nimport there_is_no_such_module\n")
    assert refusal_message(f"{mine}:broken").startswith("error in your file mine.py, line 2: ModuleNotFoundError")
    for nowhere in ("nowhere/mine.py", "~nobody/mine.py", "x" * 5000 + ".py", "nul\0.py"):
        assert refusal_message(f"{nowhere}:broken").startswith(f"no file '{nowhere}'")


def test_a_function_takes_arguments_from_its_reference(mine: str, tmp_path: Path) -> None:
    upstream = create(f"{mine}:scaled?layers=3&ckpt=a%26b.pt&name=007&loud=true")
    assert upstream.told == (3, "a&b.pt", "007", True)  # type: ignore[attr-defined]
    assert create(f"{mine}:scaled?layers=3").told == (3, "none", "", False)  # type: ignore[attr-defined]
    assert refusal_message(f"{mine}:scaled").endswith(f"write {mine}:scaled?layers=VALUE")
    assert "did you mean 'layers'?" in refusal_message(f"{mine}:scaled?layer=3")
    assert "it takes: layers, ckpt, name, loud" in refusal_message(f"{mine}:scaled?zzz=3&layers=1")
    assert "is not of the form name=value" in refusal_message(f"{mine}:scaled?layers")
    assert "is given twice" in refusal_message(f"{mine}:scaled?layers=1&layers=2")


def test_arguments_are_part_of_the_fingerprint_and_files_count_by_their_content(mine: str, tmp_path: Path) -> None:
    for name, text in (("a.pt", "one"), ("b.pt", "one"), ("c.pt", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (fingerprint(create(f"{mine}:scaled?layers=1&ckpt={tmp_path}/{name}.pt")) for name in "abc")
    assert a == b != c
    assert set(create(f"{mine}:scaled?layers=1&ckpt={tmp_path}/a.pt").origin) == {"mine.py", "a.pt"}
    assert fingerprint(create(f"{mine}:scaled?layers=1&name=x")) != fingerprint(create(f"{mine}:scaled?layers=1"))


def test_random_before_arguments_is_told_to_come_last() -> None:
    with registered(toy), pytest.raises(UpstreamError, match=r"comes last: toy\?key=value@random"):
        create("toy@random?size=3")
