from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import logging
import math
import os
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upstreams
from tests.upstreams import s3prl_spectral, s3prl_speech
from upstreams.base import UpstreamError
from upstreams.families import hub, s3prl_bridge, s3prl_entries

NO_BUILDERS = {"FileLock", "Path", "load_and_convert_fairseq_ckpt"}  # names in s3prl.hub that it only imports
ROOT = Path(str(metadata.distribution("s3prl").locate_file("s3prl")))
CODE = {  # by family: the option whose text s3prl evaluates, and the module that evaluates it
    "hubert": ("conv_feature_layers", "hubert.hubert_model"),
    "wav2vec2": ("conv_feature_layers", "wav2vec2.wav2vec2_model"),
    "wavlm": ("conv_feature_layers", "wavlm.WavLM"),
    "data2vec": ("conv_feature_layers", "data2vec.data2vec_model"),
    "multires_hubert": ("override_encoder_layers", "multires_hubert.hubert_model"),
    "distiller": ("extractor_conv_feature_layers", "distiller.model"),
    "wav2vec": ("conv_feature_layers", "wav2vec.wav2vec_model"),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulate a missing network and give s3prl an empty cache; return the folder of the cache."""
    monkeypatch.setattr(s3prl_bridge, "hub_reachable", lambda: False)
    s3prl_bridge.import_hub()
    monkeypatch.setattr(sys.modules["s3prl.util.download"], "_download_dir", tmp_path / "cache")
    return tmp_path / "cache"


def run(code: str) -> str:
    """Return the output of code in a new interpreter."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2_000:]
    return process.stdout.strip()


def build(name: str, checkpoint: Path | None, *args: Any, **options: Any) -> Any:
    with s3prl_bridge.s3prl_build(checkpoint):
        return getattr(s3prl_bridge.import_hub(), name)(*args, **options)


def test_the_table_has_the_same_names_as_the_hub() -> None:
    assert set(s3prl_entries.s3prl_entries()) == set(s3prl_bridge.import_hub().options()) - NO_BUILDERS


def test_the_table_is_made_without_importing_s3prl_or_torch() -> None:
    code = "import sys, time\nfrom upstreams.families.s3prl_entries import s3prl_entries\n"
    code += "start = time.process_time()\ns3prl_entries()\n"
    code += "print(time.process_time() - start < 0.5, 'torch' in sys.modules, 's3prl' in sys.modules)"
    assert run(code) == "True False False"


def test_every_entry_that_can_run_gets_as_far_as_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3prl_spectral.shrink(monkeypatch)
    empty = tmp_path / "empty.pt"
    torch.save({}, empty)
    for entry in s3prl_entries.s3prl_entries().values():
        if entry.reason or entry.family == "baseline":
            continue
        with pytest.raises(UpstreamError) as error:
            build(entry.name, empty if entry.needs_checkpoint else None, *[str(empty)][: entry.needs_checkpoint])
        assert "needs the package" not in str(error.value), entry
        assert entry.url == ("out of reach" in str(error.value)), (entry, error.value)


def test_packages_that_s3prl_imports_are_installed_or_in_the_table() -> None:
    """Exceptions: fairseq only converts checkpoints, librosa is used in training only, pickle5 is part of Python."""
    packages = {package for package, _, _ in s3prl_entries.PACKAGES.values()}
    wanted = {name for path in ROOT.glob("upstream/**/*.py") for name in imported(path)} - {
        "fairseq",
        "librosa",
        "pickle5",
    }
    absent = {name for name in wanted if name not in sys.stdlib_module_names and not installed(name)}
    assert absent <= packages | {"espnet2"}
    for family, (package, _, _) in s3prl_entries.PACKAGES.items():
        folder = ROOT / "upstream" / ("byol_s" if family == "byol_s_cvt" else family)
        assert any(name.startswith(package) for path in folder.glob("**/*.py") for name in imported(path)), family


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names}


def installed(name: str) -> bool:
    return s3prl_entries.importlib.util.find_spec(name) is not None


def test_an_entry_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3prl_entries.metadata, "version", lambda _: "1.0.0")
    s3prl_entries.missing_package.cache_clear()
    assert s3prl_entries.hub_entry("ssast_patch_base", "ssast", False).reason.endswith(
        "pip install --no-deps timm==0.4.5"
    )
    s3prl_entries.missing_package.cache_clear()
    monkeypatch.setattr(s3prl_entries.importlib.util, "find_spec", lambda _: None)
    assert "pip install --no-deps timm==0.4.5" in s3prl_entries.hub_entry("ast", "ast", False).reason
    s3prl_entries.missing_package.cache_clear()


@pytest.mark.parametrize("family", CODE)
def test_code_in_a_checkpoints_configuration_is_not_run(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, module = CODE[family]
    path, mark = getattr(s3prl_speech, family)(tmp_path / "model.pt"), tmp_path / "run"
    content = torch.load(path, weights_only=False)
    replace(content, key, f"__import__('pathlib').Path({str(mark)!r}).touch() or [(8, 10, 5)]")
    torch.save(content, path)
    entry = "wav2vec_local" if family == "wav2vec" else f"{family}_local"
    with pytest.raises(UpstreamError):
        build(entry, path, str(path))
    assert not mark.exists()
    monkeypatch.setitem(vars(s3prl_speech.module(module)), "eval", builtins.eval)  # the original function of s3prl
    with pytest.raises(UpstreamError):
        build(entry, path, str(path))
    assert mark.exists()


def replace(content: Any, key: str, value: str) -> None:
    """Set every value of a key in nested dicts and namespaces."""
    for inner in (content, getattr(content, "__dict__", {})):
        if isinstance(inner, dict):
            for name in list(inner):
                if name == key:
                    inner[name] = value
                else:
                    replace(inner[name], key, value)


def test_the_front_end_that_a_checkpoint_names_is_one_of_kaldis(tmp_path: Path) -> None:
    path = s3prl_spectral.tera(tmp_path / "tera.pt")
    content = torch.load(path, weights_only=False)
    mark = tmp_path / "run"
    hostile = f"fbank and __import__('pathlib').Path({str(mark)!r}).touch()"
    content["Config"]["audio"] = {"kaldi": {"feat_type": hostile, hostile: {}}, "cmvn": {"use_cmvn": True}}
    torch.save(content, path)
    with pytest.raises(UpstreamError):
        build("tera_local", path, str(path))
    assert not mark.exists()
    assert s3prl_bridge.evaluate_literal("torchaudio.compliance.kaldi.mfcc").__name__ == "mfcc"
    with pytest.raises(UpstreamError):
        s3prl_bridge.evaluate_literal("torchaudio.compliance.kaldi.torch")


class Hostile:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["apc_local", "mockingjay_local", "tera_local", "byol_a_512", "npc_local", "decoar2"])
def test_a_pickle_that_runs_code_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "hostile.pt", tmp_path / "run"
    torch.save({"model": {}, "Config": Hostile(mark)}, path)
    needs = s3prl_entries.s3prl_entries()[name].needs_checkpoint
    with pytest.raises(UpstreamError, match="mkdir") as error:
        build(name, path, *[str(path)][:needs])
    assert not mark.exists()
    assert "\n" not in str(error.value)
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_without_a_checkpoint_or_a_network_the_url_is_named(offline: Path) -> None:
    with pytest.raises(UpstreamError, match=r"apc_360hr\.ckpt and give the file as s3prl:NAME@CHECKPOINT"):
        build("apc", None)
    assert not [path for path in offline.rglob("*") if path.is_file()]


def test_what_s3prl_downloaded_before_is_used(offline: Path) -> None:
    url = "https://huggingface.co/leo19941227/apc_series/resolve/main/apc_360hr.ckpt"
    offline.mkdir()
    path = s3prl_spectral.apc(offline / f"{hashlib.sha256(url.encode()).hexdigest()}.apc_360hr.ckpt")
    with s3prl_bridge.s3prl_build(None) as opened:
        s3prl_bridge.import_hub().apc()
    assert list(opened.files.values()) == [path]
    assert [set(content) for content in opened.loaded] == [{"config", "model", "global_step", "optimizer"}]


def test_with_a_network_a_checkpoint_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    urls = []

    def download(path: Path, url: str, refresh: bool) -> None:
        urls.append(url)
        s3prl_spectral.apc(path)

    monkeypatch.setattr(s3prl_bridge, "hub_reachable", hub.hub_reachable)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    monkeypatch.setattr(sys.modules["s3prl.util.download"], "_download", download)
    assert [build("apc", None).get_downsample_rates("") for _ in range(2)] == [160, 160]
    assert urls == ["https://huggingface.co/leo19941227/apc_series/resolve/main/apc_360hr.ckpt"]


def test_errors_that_s3prl_catches_are_raised() -> None:
    inside = s3prl_bridge.s3prl_build(Path("nowhere"))
    with pytest.raises(UpstreamError, match="no file 'nowhere'"), inside, contextlib.suppress(UpstreamError):
        s3prl_bridge.import_hub().apc()


def test_a_failed_download_becomes_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(s3prl_bridge, "hub_reachable", lambda: True)
    monkeypatch.setattr(sys.modules["s3prl.util.download"], "_download", fail)
    with pytest.raises(UpstreamError, match=r"cannot be downloaded \(connection refused\).*@CHECKPOINT"):
        build("byol_a_512", None)


def test_a_file_or_its_folder_stands_in_for_the_download(tmp_path: Path) -> None:
    path = s3prl_spectral.byol_a(tmp_path / "AudioNTT2020-BYOLA-64x96d512.pth")
    one, other = (build("byol_a_512", checkpoint).state_dict() for checkpoint in (path, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UpstreamError, match=r"no file '.*/apc_360hr\.ckpt'; download it from https"):
        build("apc", tmp_path)


def test_an_entry_of_several_files_requires_their_folder(tmp_path: Path) -> None:
    folder = s3prl_speech.discretebert(tmp_path / "both")
    assert build("discretebert", folder).max_positions
    with pytest.raises(
        UpstreamError, match=r"vq-wav2vec_kmeans\.pt and vq_wav2vec_kmeans_roberta\.pt; give the folder"
    ):
        build("discretebert", folder / "vq-wav2vec_kmeans.pt")


def test_what_s3prl_raises_becomes_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UpstreamError, match=r"AssertionError at `assert os.path.isfile\(ckpt\)`"):
        build("apc_local", None, "nowhere.pt")
    wrong = s3prl_spectral.tera(tmp_path / "tera.pt")
    with pytest.raises(UpstreamError, match="KeyError: 'config'"):
        build("apc_local", wrong, str(wrong))
    monkeypatch.setitem(sys.modules, "timm", None)  # s3prl exits where it cannot be imported
    with pytest.raises(UpstreamError, match="SystemExit: 1"):
        build("ssast_patch_base", wrong)


def test_errors_of_memory_and_of_code_say_what_is_wrong() -> None:
    def sentence(error: Exception) -> str:
        with pytest.raises(UpstreamError) as caught, s3prl_bridge.translated_errors("it"):
            raise error
        return str(caught.value)

    for error in (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0."), MemoryError("4 GiB")):
        assert sentence(error) == "it: its configuration asks for more memory than there is"
    assert sentence(IndexError("2")) == "it: s3prl's code does not fit this checkpoint: IndexError: 2"


def test_a_cause_that_s3prl_hides_is_named(tmp_path: Path) -> None:
    path = s3prl_spectral.tera(tmp_path / "tera.pt")
    content = torch.load(path, weights_only=False)
    name = next(name for name in content["Transformer"] if "gamma" not in name)
    content["Transformer"][name] = torch.zeros(5)
    torch.save(content, path)
    with pytest.raises(UpstreamError, match="size mismatch"):
        build("tera_local", path, str(path))


def test_building_leaves_the_process_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = s3prl_spectral.tera(tmp_path / "tera.pt")
    modules_as_made, drawn = dict(vars(torch.nn.Module)), np.random.get_state()[1].tolist()
    before = torch.load, list(logging.root.handlers), logging.root.manager.disable
    files, modules = sorted(tmp_path.iterdir()), set(sys.modules)
    build("tera_local", path, str(path))
    with pytest.raises(UpstreamError):
        build("apc_local", path, str(path))
    assert before == (torch.load, list(logging.root.handlers), logging.root.manager.disable)
    assert (dict(vars(torch.nn.Module)), np.random.get_state()[1].tolist()) == (modules_as_made, drawn)
    assert sorted(tmp_path.iterdir()) == files
    assert not {"optimizers", "torchvision", "timm.data", "torch._six"} & (set(sys.modules) - modules)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("option", ["fairseq=true", "legacy=true", "hooks=1"])
def test_options_that_run_fairseq_write_nothing_beside_the_checkpoint(option: str, tmp_path: Path) -> None:
    path = s3prl_speech.hubert(tmp_path / "model.pt")
    with pytest.raises(UpstreamError):
        upstreams.create(f"s3prl:hubert_local@{path}?{option}")
    assert list(tmp_path.iterdir()) == [path]


def test_torchaudio_is_restored_after_a_build() -> None:
    code = """
from upstreams.torchaudio_guard import guard
guard()
import torch, torchaudio, sys
before = {name: id(value) for name, value in vars(torchaudio).items()}
paths = list(sys.path)
from upstreams.families import s3prl_bridge
hub = s3prl_bridge.import_hub()
assert hub is s3prl_bridge.import_hub() and sys.path == paths
after = {name: id(value) for name, value in vars(torchaudio).items()}
assert all(after[name] == before[name] for name in before)
if torchaudio.__version__ >= "2.9":  # which took these away
    assert not hasattr(torchaudio, "set_audio_backend") and "torchaudio.sox_effects" not in sys.modules
from upstreams.families import s3prl_entries
if not s3prl_entries.missing_package("ssast"):
    s3prl_entries.import_timm()
    import timm
    assert timm.__version__ == "0.4.5" and not hasattr(timm, "data")
from s3prl.nn import S3PRLUpstream, Featurizer
import speechbrain
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from transformers import ASTConfig, ASTModel, AutoModel, HubertConfig, HubertModel
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
ast = ASTModel(ASTConfig(**sizes, max_length=32)).eval()
HubertModel(HubertConfig(**sizes, num_conv_pos_embedding_groups=2))
print(tuple(ast(torch.randn(1, 32, 128)).last_hidden_state.shape))
"""
    assert run(code) == "(1, 26, 8)"


def test_positions_are_sines_and_cosines_of_falling_rates() -> None:
    """Vaswani et al. (2017), section 3.5; s3prl's own table is identical bit by bit."""
    table = s3prl_spectral.module("mockingjay.builder").get_sinusoid_table(7)
    assert table.shape == (24_000, 7)
    for position in (0, 1, 17, 23_999):
        angles = [position / 10_000 ** (2 * (column // 2) / 7) for column in range(7)]
        expected = [math.cos(angle) if column % 2 else math.sin(angle) for column, angle in enumerate(angles)]
        torch.testing.assert_close(table[position], torch.tensor(expected), rtol=0, atol=1e-7)


def test_pickle_and_torch_load_work_again_afterwards(tmp_path: Path) -> None:
    path = s3prl_spectral.apc(tmp_path / "apc.pt")
    build("apc", path)
    assert pickle.loads(pickle.dumps(Path("x"))) == Path("x")
    torch.save({"path": Path("x")}, path)
    assert torch.load(path, weights_only=False) == {"path": Path("x")}
