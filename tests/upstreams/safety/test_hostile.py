from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tests.conftest import Bench
from tests.upstreams import hostile, models
from upstreams import create
from upstreams.base import UpstreamError
from upstreams.safety import checkpoints

NAMES = sorted(hostile.files(Path("unused")))
CODE = sorted(hostile.code(Path("unused")))
SECONDS = 20  # limit for refusing one file on a busy machine
REFUSE_ALL = """
import resource, sys, pathlib
from upstreams.safety import checkpoints
from upstreams.base import UpstreamError
import safetensors.torch, numpy
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (1 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        checkpoints.load_checkpoint(path)
    except UpstreamError:
        print("refused")
"""


class TooLongError(BaseException):
    """Not derived from Exception, so that it is not mistaken for the error of a broken file."""


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """Let a test that hangs fail."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a file that exists only if code of a hostile file was executed."""
    return tmp_path_factory.mktemp("canary") / "harm"


@pytest.fixture(scope="module")
def files(harm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for number, (_, content) in enumerate(sorted(hostile.files(harm).items())):
        (folder / f"{number:03}.pt").write_bytes(content)
    return folder


def refusal(path: Path | str) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(UpstreamError) as caught:
        checkpoints.read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 400 + len(str(path))
    return message


@pytest.mark.parametrize("name", NAMES)
def test_hostile_and_broken_files_are_refused_in_a_sentence_and_run_nothing(name: str, files: Path, harm: Path) -> None:
    message = refusal(files / f"{NAMES.index(name):03}.pt")
    assert not harm.exists()
    if name in CODE and name != "extension registry":
        assert "wants to run" in message
    assert any(what in message for what in ("safetensors", "download", "unpack", "run git lfs", "newer torch"))


REASONS = {
    "os.system": "wants to run posix.system,",
    "os.system, protocol 4": "wants to run posix.system,",
    "os.system, instance": "wants to run os.system,",
    "eval": "wants to run builtins.eval,",
    "in omegaconf": "wants to run os.system,",
    "in a Namespace": "wants to run posix.system,",
    "partial": "wants to run functools.partial,",
    "torch's second loader": "wants to run torch.storage._load_from_bytes,",
    "whole model": "wants to run torch.nn.modules.linear.Linear,",
    "storage beyond its record": "declares weights of 4000000000 bytes where it holds 16;",
    "storage beyond its file, old format": "declares more weights than it holds",
    "storage twice, old format": "declares more weights than it holds",
    "negative storage": "in a way that torch does not write",
    "tensor beyond its storage": "declares larger weights than it holds",
    "tensor before its storage": "in a way that torch does not write",
    "negative strides": "in a way that torch does not write",
    "size of text": "in a way that torch does not write",
    "sparse": "not dense (torch._utils._rebuild_sparse_tensor)",
    "codec by codec": "wants to run _codecs.encode,",
    "size of a tensor": "wants to run torch.Size,",
    "set of a tensor": "wants to run builtins.set,",
    "bytes by number": "wants to run builtins.bytearray,",
    "colliding keys": "has keys that no weights have",
    "slow key": "has keys that no weights have",
    "list within itself": "nested without end",
    "bomb": "is a compressed or encrypted zip archive",
    "encrypted zip": "is a compressed or encrypted zip archive",
    "HTML": "is a web page",
    "git-lfs pointer": "is a git-lfs pointer",
    "JSON": "is JSON",
    "empty": "is empty",
    "TorchScript": "is TorchScript",
    "truncated": "is truncated",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_refusal_says_what_is_wrong(name: str, files: Path) -> None:
    assert REASONS[name] in refusal(files / f"{NAMES.index(name):03}.pt")


def test_hostile_files_would_do_harm_to_a_careless_reader(files: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    path = tmp_path / "a.pt"
    path.write_bytes(hostile.code(harm)["in a Namespace"])
    torch.load(path, weights_only=False)
    assert harm.exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to measure and limit memory")
def test_no_hostile_file_takes_much_memory_or_ends_the_process(files: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_ALL, str(files)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    assert done.stdout.count("refused") == len(NAMES)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "nothing")
    for path in (tmp_path / "pipe.pt", tmp_path / "folder.pt", Path("/dev/zero")):
        assert "but a folder or device" in refusal(path)
    assert "cannot be opened" in refusal(tmp_path / "loop.pt")
    for name in ("dangling.pt", "none.pt", "a.pt/b.pt"):
        assert refusal(tmp_path / name).startswith("no file")
    with pytest.raises(UpstreamError, match="no file"):
        checkpoints.load_checkpoint("a\0b.pt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1)}, path)
    path.chmod(0)
    assert "cannot be opened (Permission denied)" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        "{}",
        "[" * 100_000,
        '{"weight_map": {"w": "../a.safetensors"}}',
        '{"weight_map": {"w": "/etc/passwd"}}',
        '{"weight_map": {"w": ".."}}',
        '{"weight_map": {"w": "a.index.json"}}',
        '{"weight_map": {"w": 3}}',
        '{"weight_map": {"w": "a\\u0000b"}}',
        '{"weight_map": {"w": "\\u001b[2J"}}',
        '{"weight_map": {"w": "' + "x" * 5_000 + '"}}',
    ],
)
def test_indices_that_lead_elsewhere_or_nowhere_are_refused(content: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UpstreamError) as caught:
        checkpoints.read_weights(index)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("family", ["hf", "speechbrain", "fairseq"])
@pytest.mark.parametrize("path", ["~nobody-here/x", "x" * 5_000, "x/" * 3_000, "x\0y", "\ud800"])
def test_what_can_be_no_path_is_refused_in_a_sentence(family: str, path: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        create(f"{family}:{path}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_path_that_was_expanded_can_be_asked_about(tmp_path: Path) -> None:
    assert checkpoints.expanded_path("~") == Path.home()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "file/below", "loop", "absent", "absent/below"):
        path = checkpoints.expanded_path(str(tmp_path / name))
        assert path.is_file() == (name == "file")
        assert not path.is_dir()


def valid() -> list[bytes]:
    """Return a valid file of each format, with many kinds of content."""
    weights = {"w": torch.arange(12.0).reshape(3, 4)}
    content = {
        "model": weights,
        "args": argparse.Namespace(lr=0.1, size=(1, 2)),
        "steps": {1},
        "score": torch.Size([2]),
    }
    return [hostile.saved(content), hostile.saved(content, _use_new_zipfile_serialization=False), save(weights)]


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(data.draw(st.sampled_from(valid()), label="file"))
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = folder / "damaged.pt"
    path.write_bytes(content)
    with suppress(UpstreamError):
        checkpoints.load_checkpoint(path)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the format of transformers, to be modified."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hubert")
    models.save(models.build("hubert", **models.SMALL), models.waveform_extractor(), folder)
    return folder


@pytest.mark.parametrize("name", ["os.system", "in omegaconf", "HTML", "truncated", "terabytes of one number", "empty"])
def test_bench_refuses_a_hostile_model_in_one_line(
    name: str, hubert: Path, files: Path, harm: Path, tmp_path: Path, bench: Bench
) -> None:
    shutil.copytree(hubert, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    shutil.copy(files / f"{NAMES.index(name):03}.pt", tmp_path / "model" / "pytorch_model.bin")
    answer = bench("check", f"hf:{tmp_path / 'model'}")
    assert answer.code == 2
    assert "pytorch_model.bin" in answer.complaint
    assert not harm.exists()


def test_bench_names_the_weights_of_another_architecture(hubert: Path, tmp_path: Path, bench: Bench) -> None:
    shutil.copytree(hubert, tmp_path / "model")
    state = checkpoints.read_weights(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({f"tower.{name}": tensor for name, tensor in state.items()}, tmp_path / "model" / "pytorch_model.bin")
    answer = bench("check", f"hf:{tmp_path / 'model'}")
    assert answer.code == 2
    assert "missing: " in answer.complaint
    assert "encoder.layer_norm" in answer.complaint


def test_bench_names_weights_that_are_not_finite(hubert: Path, tmp_path: Path, bench: Bench) -> None:
    shutil.copytree(hubert, tmp_path / "model")
    state = checkpoints.read_weights(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    name = "encoder.layers.0.attention.k_proj.weight"
    torch.save(state | {name: state[name] * float("nan")}, tmp_path / "model" / "pytorch_model.bin")
    answer = bench("check", f"hf:{tmp_path / 'model'}")
    assert answer.code == 2
    assert name in answer.complaint
