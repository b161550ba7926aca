from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["transformers speechbrain s3prl", "speechbrain transformers"])
def test_after_the_guard_everything_that_needs_torchaudio_can_be_imported(order: str) -> None:
    imports = "\n".join(f"import {name}" for name in order.split())
    code = f"from upstreams.torchaudio_guard import guard; guard(); guard()\n{imports}\n"
    code += "from transformers import HubertModel, ASTFeatureExtractor\n"
    code += "from torchaudio.compliance import kaldi; import torch\n"
    assert run(code + "print(tuple(kaldi.fbank(torch.randn(1, 16000)).shape))") == "(98, 23)"


def test_what_needs_the_compiled_library_says_so_when_it_is_called() -> None:
    code = """
import sys
from upstreams.torchaudio_guard import MissingExtension, unavailable
stub = MissingExtension("torchaudio._extension")
assert stub._IS_TORCHAUDIO_EXT_AVAILABLE is False
assert not hasattr(stub, "nonsense")
@stub.fail_if_no_align
def align(): pass
try:
    align()
except RuntimeError as error:
    print(error)
"""
    assert run(code) == "align needs torchaudio's compiled library, which does not load here"


def test_the_guard_does_nothing_where_torchaudio_is_absent_or_works(tmp_path) -> None:
    absent = "import sys, importlib.util\nfrom upstreams.torchaudio_guard import guard\n"
    absent += "importlib.util.find_spec = lambda name: None\nguard(); print('torchaudio' in sys.modules)"
    assert run(absent) == "False"
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("from torchaudio import _extension")
    (tmp_path / "torchaudio" / "_extension.py").write_text("real = True")
    works = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom upstreams.torchaudio_guard import guard; guard()\n"
    )
    assert run(works + "import torchaudio; print(torchaudio._extension.real)") == "True"


def test_a_torchaudio_that_fails_to_load_its_library_is_imported_without_it(tmp_path) -> None:
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("from torchaudio import helper, _extension\nfrom torchaudio import later\n")
    (package / "helper.py").write_text("")
    (package / "_extension.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    (package / "later.py").write_text("from torchaudio._extension import fail_if_no_align, _IS_ALIGN_AVAILABLE")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom upstreams.torchaudio_guard import guard; guard()\n"
    assert run(code + "import torchaudio; print(torchaudio.later._IS_ALIGN_AVAILABLE)") == "False"


def test_what_torchaudio_dropped_is_there_for_a_while_and_refuses_to_be_called() -> None:
    code = """
from upstreams.torchaudio_guard import before_2_9, guard
guard()
import sys, torchaudio
for name in ("set_audio_backend", "sox_effects"):  # older releases have them still
    vars(torchaudio).pop(name, None)
sys.modules.pop("torchaudio.sox_effects", None)
before = dict(vars(torchaudio))
with before_2_9():
    torchaudio.set_audio_backend("sox_io")
    from torchaudio.sox_effects import apply_effects_tensor
    try:
        apply_effects_tensor(None, 16000, [])
    except RuntimeError as error:
        print(error)
assert vars(torchaudio) == before and "torchaudio.sox_effects" not in sys.modules
"""
    assert run(code) == "torchaudio 2.9 and later have no sox effects; apply them to the files beforehand"


def test_functions_that_torchaudio_has_are_not_replaced(tmp_path) -> None:
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("from torchaudio import sox_effects\ndef set_audio_backend(name): pass\n")
    (package / "sox_effects.py").write_text("def apply_effects_tensor(): return 'real'")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport torchaudio\nreal = torchaudio.set_audio_backend\n"
    )
    code += "from upstreams.torchaudio_guard import before_2_9\nwith before_2_9():\n"
    code += "    from torchaudio.sox_effects import apply_effects_tensor\n"
    code += "    print(apply_effects_tensor(), torchaudio.set_audio_backend is real)\n"
    assert run(code + "assert torchaudio.set_audio_backend is real and torchaudio.sox_effects") == "real True"
