"""Tests of locating files in folders and cached revisions, and of the error messages; they use no network."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.upstreams.models import SMALL, build, refusal_message, save, waveform_extractor
from upstreams import create
from upstreams.base import fingerprint

OLD, NEW = "a" * 40, "b" * 40
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions of a model, by commit."""
    folders = {}
    for seed, commit in enumerate((OLD, NEW)):
        torch.manual_seed(seed)
        folders[commit] = tmp_path_factory.mktemp("hubert")
        save(build("hubert", **SMALL), waveform_extractor(bool(seed)), folders[commit])
    return folders


@pytest.fixture
def cache(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of both versions, with a branch, a tag and a pull request, and the hub switched off."""
    from huggingface_hub import constants

    home = tmp_path / "models--somebody--hubert"
    for commit, folder in folders.items():
        shutil.copytree(folder, home / "snapshots" / commit)
    for name, commit in (("main", NEW), ("v1.0", OLD), ("refs/pr/1", OLD)):
        (home / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return home


def digests(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize(
    ("revision", "commit"), [("", NEW), ("@main", NEW), ("@v1.0", OLD), ("@refs/pr/1", OLD), (f"@{OLD}", OLD)]
)
def test_every_file_of_a_revision_comes_from_its_commit(
    revision: str, commit: str, cache: Path, folders: dict[str, Path]
) -> None:
    upstream = create(f"hf:somebody/hubert{revision}")
    assert fingerprint(upstream) == fingerprint(create(f"hf:{folders[commit]}"))
    assert upstream.origin == digests(folders[commit]) | {"revision": commit}


def test_a_branch_that_moves_while_files_are_read_mixes_no_commits(
    cache: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from upstreams.families.hub import Source

    plain = Source.read_json

    def moving(self: Source, name: str) -> dict | None:
        content = plain(self, name)
        (cache / "refs" / "main").write_text(OLD)
        return content

    monkeypatch.setattr(Source, "read_json", moving)
    assert create("hf:somebody/hubert").origin == digests(folders[NEW]) | {"revision": NEW}


def test_a_random_twin_takes_a_revision_too(cache: Path, folders: dict[str, Path]) -> None:
    (cache / "snapshots" / OLD / "model.safetensors").unlink()
    upstream = create("hf:somebody/hubert@v1.0@random")
    assert upstream.origin == digests(folders[OLD], FILES[:2]) | {"revision": OLD}


def test_revisions_missing_from_the_cache_are_named_without_a_network(cache: Path) -> None:
    message = refusal_message("hf:somebody/hubert@v2.0")
    assert "'somebody/hubert' at revision 'v2.0' is no folder and not in the Hugging Face cache" in message
    assert "the hub is out of reach" in message
    for bad in ("../../x", "", "two words", "-x"):
        assert "is no revision of 'somebody/hubert'" in refusal_message(f"hf:somebody/hubert@{bad}")


def test_a_folders_origin_is_the_digests_of_what_was_read(folders: dict[str, Path], tmp_path: Path) -> None:
    (folders[OLD] / "README.md").write_text("not read")
    assert create(f"hf:{folders[OLD]}").origin == digests(folders[OLD])
    at = tmp_path / "my@model"
    shutil.copytree(folders[OLD], at)
    assert create(f"hf:{at}").origin == digests(folders[OLD])
    assert "is a folder, which has no revisions" in refusal_message(f"hf:{folders[OLD]}@main")


def test_near_misses_of_a_folder_are_refused_with_advice(folders: dict[str, Path]) -> None:
    folder = folders[OLD]
    assert f"random twin is written {folder}@random" in refusal_message(f"hf:{folder}@Random")
    assert "take none" in refusal_message(f"hf:{folder}?layers=3")
    assert "give its folder, or fairseq:FILE" in refusal_message(f"hf:{folder / 'model.safetensors'}")
    assert refusal_message(f"speechbrain:{folder / 'config.json'}").endswith(
        "speechbrain: takes a folder with hyperparams.yaml, or a hub id"
    )


def test_json_of_more_than_20_mb_is_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "sparse"
    shutil.copytree(folders[OLD], folder)
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert "config.json' has more than 20 MB" in refusal_message(f"hf:{folder}")


def test_all_parts_of_weights_in_several_files_are_in_the_origin(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "parts"
    shutil.copytree(folders[OLD], folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    upstream = create(f"hf:{folder}")
    assert fingerprint(upstream) == fingerprint(create(f"hf:{folders[OLD]}"))
    assert upstream.origin == digests(folder, (*FILES[:2], "model.safetensors.index.json", *files))


def test_a_missing_model_is_reported_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal_message("hf:nobody/has-ever-published-this")
    assert "not in the Hugging Face cache, and the hub is out of reach" in message
    assert refusal_message("hf:not a hub id").startswith("'not a hub id' is neither a folder nor a hub id")
    assert "give the folder" in refusal_message("hubert_base")


def test_errors_of_the_hub_become_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    answer = SimpleNamespace(headers={}, request=None)
    expected = {
        errors.RepositoryNotFoundError: "no folder and no public repository 'somebody/thing' on the hub",
        errors.RevisionNotFoundError: "'somebody/thing' has no revision 'v9' on the hub",
        errors.HfHubHTTPError: "'somebody/thing' cannot be downloaded from the hub: gone away",
    }
    monkeypatch.setattr("upstreams.families.hub.hub_reachable", lambda: True)
    for kind, sentence in expected.items():

        def fails(*_: object, kind: type = kind, **__: object) -> str:
            raise kind("gone\naway", response=answer)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
        assert sentence in refusal_message("hf:somebody/thing@v9")
