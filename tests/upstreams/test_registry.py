from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import upstreams
from tests.upstreams.models import told
from upstreams import create, entries, names, register
from upstreams.base import fingerprint
from upstreams.user_files import lies_in

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


def test_names_are_listed_without_importing_torch() -> None:
    code = "import sys, upstreams; print(len(upstreams.names())); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = done.stdout.split()
    assert int(count) >= 15
    assert imported == "False"


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
    assert told("fbnak") == "no upstream 'fbnak'; did you mean 'fbank'? see: bench list upstreams"
    assert told("wavlm_bas").startswith("no upstream 'wavlm_bas'; did you mean 'wavlm_base'?")
    assert told("FBANK").startswith("no upstream 'FBANK'; did you mean 'fbank'?")
    assert told("tera_local") == "no upstream 'tera_local'; write s3prl:tera_local for that of s3prl's hub"
    assert told("tera_local@tera.pt").startswith("no upstream 'tera_local@tera.pt'; write s3prl:tera_local@tera.pt")
    assert told("zzzzzz") == "no upstream 'zzzzzz'; see: bench list upstreams"
    assert told("mine.py").endswith("a reference to your own upstream is mine.py:function")
    assert told("facebook/hubert-base-ls960").endswith("is written hf:facebook/hubert-base-ls960")
    assert told("nofamily:thing").startswith("no family of upstreams in 'nofamily:thing'")


def test_what_has_no_weights_has_no_random_twin() -> None:
    assert "no random twin of 'fbank'" in told("fbank@random")


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
    assert "no random twin of" in told(f"{mine}:fixed@random")


def test_mistakes_in_ones_own_file_are_told_with_the_line(mine: str) -> None:
    line = MINE.splitlines().index('    return {}["nothing"]') + 1
    assert told(f"{mine}:failing") == f"error in your file mine.py, line {line}: KeyError: 'nothing'"
    assert told(f"{mine}:refusing") == "bring your own weights"
    assert "gives a Linear" in told(f"{mine}:wrong")
    assert "has hop=0" in told(f"{mine}:incomplete")
    assert told(f"{mine}:absent").startswith("no function 'absent' in")
    Path(mine).write_text("import torch\ndef broken(:\n    pass\n")
    assert told(f"{mine}:broken").startswith("error in your file mine.py, line 2: SyntaxError")
    Path(mine).write_text("import sys\nsys.exit(3)\n")
    assert told(f"{mine}:broken").startswith("error in your file mine.py, line 2: SystemExit")
    Path(mine).write_text("import torch\nimport there_is_no_such_module\n")
    assert told(f"{mine}:broken").startswith("error in your file mine.py, line 2: ModuleNotFoundError")
    for nowhere in ("nowhere/mine.py", "~nobody/mine.py", "x" * 5000 + ".py", "nul\0.py"):
        assert told(f"{nowhere}:broken").startswith(f"no file '{nowhere}'")


def test_a_function_takes_arguments_from_its_reference(mine: str, tmp_path: Path) -> None:
    upstream = create(f"{mine}:scaled?layers=3&ckpt=a%26b.pt&name=007&loud=true")
    assert upstream.told == (3, "a&b.pt", "007", True)  # type: ignore[attr-defined]
    assert create(f"{mine}:scaled?layers=3").told == (3, "none", "", False)  # type: ignore[attr-defined]
    assert told(f"{mine}:scaled").endswith(f"write {mine}:scaled?layers=VALUE")
    assert "did you mean 'layers'?" in told(f"{mine}:scaled?layer=3")
    assert "it takes: layers, ckpt, name, loud" in told(f"{mine}:scaled?zzz=3&layers=1")
    assert "is not of the form name=value" in told(f"{mine}:scaled?layers")
    assert "is given twice" in told(f"{mine}:scaled?layers=1&layers=2")


def test_arguments_are_part_of_the_fingerprint_and_files_count_by_their_content(mine: str, tmp_path: Path) -> None:
    for name, text in (("a.pt", "one"), ("b.pt", "one"), ("c.pt", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (fingerprint(create(f"{mine}:scaled?layers=1&ckpt={tmp_path}/{name}.pt")) for name in "abc")
    assert a == b != c
    assert set(create(f"{mine}:scaled?layers=1&ckpt={tmp_path}/a.pt").origin) == {"mine.py", "a.pt"}
    assert fingerprint(create(f"{mine}:scaled?layers=1&name=x")) != fingerprint(create(f"{mine}:scaled?layers=1"))
