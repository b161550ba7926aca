"""Files that no one should load: written by hand, opcode by opcode where torch.save would not write them."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pickle
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

GIGA = 10**9


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def value(given: Any) -> bytes:
    """Opcodes (protocol 2) of a plain value; bytes are taken for opcodes already."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, str):
        return b"X" + len(given.encode()).to_bytes(4, "little") + given.encode()
    if isinstance(given, tuple):
        return b"(" + b"".join(map(value, given)) + b"t"
    if isinstance(given, list):
        return b"](" + b"".join(map(value, given)) + b"e"
    if isinstance(given, dict):
        return b"}(" + b"".join(value(key) + value(item) for key, item in given.items()) + b"u"
    return pickle.dumps(given, 2)[2:-1]


def call(function: bytes, *args: Any) -> bytes:
    return function + value(args) + b"R"


def storage(count: int, kind: str = "FloatStorage", key: str = "0", *view: Any) -> bytes:
    return value(("storage", named("torch", kind), key, "cpu", count, *view)) + b"Q"


def tensor(stored: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    hooks = call(named("collections", "OrderedDict"))
    return call(named("torch._utils", "_rebuild_tensor_v2"), stored, offset, size, stride, False, hooks)


def zipped(content: Any, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint as torch writes them, of opcodes or plain values, with the storages given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + value(content) + b".")
        archive.writestr("archive/version", b"3\n")
        for key, stored in ({"0": bytes(16)} if records is None else records).items():
            archive.writestr(f"archive/data/{key}", stored)
    return buffer.getvalue()


def old(content: Any, keys: tuple[str, ...] = ()) -> bytes:
    """A checkpoint as torch wrote them before 1.6; what follows of storages is left out."""
    parts = [torch.serialization.MAGIC_NUMBER, 1001, {}, content, list(keys)]
    return b"".join(b"\x80\x02" + value(part) + b"." for part in parts)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def safetensors(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def floats(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def code(harm: Path) -> dict[str, bytes]:
    """Pickles that would make the folder `harm` if anything in them were run."""
    system, text = Call(os.system, f"mkdir {harm}"), f"__import__('os').mkdir({str(harm)!r})"
    namespace = argparse.Namespace(lr=0.1, model=argparse.Namespace(hook=system))
    command = call(named("os", "system"), f"mkdir {harm}")
    node = named("omegaconf.dictconfig", "DictConfig") + b")\x81" + value({"_content": {"lr": command}}) + b"b"
    state = named("argparse", "Namespace") + b")\x81" + command + b"b"
    return {
        "os.system": saved({"w": system}),
        "os.system, old format": saved({"w": system}, _use_new_zipfile_serialization=False),
        "os.system, protocol 4": saved({"w": system}, pickle_protocol=4),
        "os.system, bare pickle": pickle.dumps(system),
        "os.system, protocol 0": pickle.dumps(system, 0),
        "os.system, instance": zipped(b"(" + value(f"mkdir {harm}") + b"ios\nsystem\n"),
        "os.system, object": zipped(b"(" + named("os", "system") + value(f"mkdir {harm}") + b"o"),
        "eval": saved({"w": Call(eval, text)}),
        "exec": saved([torch.ones(1), Call(exec, text)]),
        "getattr": saved(Call(getattr, "text", "upper")),
        "import": saved(Call(__import__, "antigravity")),
        "Popen": saved({"state_dict": {"w": Call(subprocess.Popen, ["mkdir", str(harm)])}}),
        "partial": saved(Call(functools.partial, os.system, f"mkdir {harm}")),
        "partial called": zipped(call(call(named("functools", "partial"), named("os", "system"), f"mkdir {harm}"))),
        "in a Namespace": saved({"model": {"w": torch.ones(1)}, "args": namespace}),
        "in omegaconf": zipped({"model": {}, "cfg": node}),
        "as a Namespace's state": zipped({"args": state}),
        "as a dictionary's key": zipped(b"}(" + command + b"Nu"),
        "numpy's runner": zipped(call(named("numpy.testing._private.utils", "runstring"), text, {})),
        "fairseq's importer": zipped(call(named("fairseq.utils", "import_user_module"), "/tmp")),
        "torch's second loader": zipped(call(named("torch.storage", "_load_from_bytes"), pickle.dumps(system))),
        "extension registry": zipped(b"\x82\x01"),
        "tensor's state": zipped(tensor(storage(4), (4,), (1,)) + value((1, 2)) + b"b"),
        "call of a value": zipped(call(value("text"))),
        "whole model": saved(nn.Linear(2, 2)),
        "whole model, old format": saved(nn.Linear(2, 2), _use_new_zipfile_serialization=False),
    }


def sizes() -> dict[str, bytes]:
    """Small files that would take all memory or time if they were believed."""
    pairs = b"Nq\x00" + b"h\x00h\x00\x86q\x00" * 60  # each a pair of the one before
    doubled = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(64))
    grown = call(named("_codecs", "encode"), "a" * 1000, "latin1")
    for _ in range(40):
        grown = call(named("_codecs", "encode"), grown, "hex")
    tiny = storage(4)
    return {
        "storage beyond its record": zipped({"w": tensor(storage(GIGA), (GIGA,), (1,))}),
        "storage beyond its file, old format": old(
            {"w": tensor(storage(GIGA, "FloatStorage", "0", None), (9,), (1,))}, ("0",)
        ),
        "storage twice, old format": old(
            [storage(4, "FloatStorage", "0", None), tensor(storage(GIGA, "FloatStorage", "0", None), (GIGA,), (1,))],
            ("0",),
        ),
        "negative storage": zipped({"w": tensor(storage(-4), (4,), (1,))}),
        "tensor beyond its storage": zipped({"w": tensor(tiny, (GIGA,), (1,))}),
        "tensor before its storage": zipped({"w": tensor(tiny, (4,), (1,), offset=-1)}),
        "terabytes of one number": zipped({"w": tensor(tiny, (GIGA, 1000), (0, 0))}),
        "gigabytes, many times": zipped([tensor(tiny, (10**7,), (0,)) for _ in range(100)]),
        "negative strides": zipped({"w": tensor(tiny, (4,), (-1,))}),
        "size of text": zipped({"w": tensor(tiny, ("4",), (1,))}),  # type: ignore[arg-type]
        "sparse": saved({"w": torch.ones(2, 2).to_sparse()}),
        "quantised": zipped(call(named("torch._utils", "_rebuild_qtensor"), tiny, 0, (GIGA,), (1,))),
        "no storage": saved({"w": torch.ones(4, device="meta")}),
        "bytes by number": zipped(call(named("__builtin__", "bytearray"), GIGA * 1000)),
        "storage by number": zipped(call(named("torch.storage", "UntypedStorage"), GIGA * 1000)),
        "tensor by number": zipped(call(named("torch", "Tensor"), GIGA * 1000)),
        "codec by codec": zipped(grown),
        "size of a tensor": zipped(call(named("torch", "Size"), tensor(tiny, (10**7,), (0,)))),
        "set of a tensor": zipped(call(named("__builtin__", "set"), tensor(tiny, (10**7,), (0,)))),
        "slow key": zipped(b"](" + pairs + b"}h\x00Nse"),
        "slow class": zipped(b"](" + pairs + b"h\x00)\x81e"),
        "slow function": zipped(b"](" + pairs + named("torch._tensor", "_rebuild_from_type_v2") + b"(h\x00h\x00)NtRe"),
        "slow state": zipped(b"](" + pairs + call(named("collections", "OrderedDict")) + b"](](h\x00Neebe"),
        "slow member": zipped(b"](" + pairs + named("__builtin__", "set") + b"](h\x00e\x85Re"),
        "slow encoding": zipped(call(named("__builtin__", "bytearray"), "\u03b1\u4e00" * 50_000, "punycode")),
        "long key, often": zipped(b"}(" + b"N" * 100_000 + b"tq\x00Ns" + b"h\x00Ns" * 100_000),
        "colliding keys": zipped(b"}" + b"".join(value(n * (2**61 - 1)) + b"Ns" for n in range(1, 60_000))),
        "deep tuple as a key": zipped(b"}" + b")" + b"\x85" * 90_000 + b"Ns"),
        "doubled lists": zipped(doubled),
        "list within itself": zipped(b"]q\x00h\x00a"),
        "deep list": zipped(b"]" * 40_000 + b"a" * 39_999),
        "deep tuple": zipped(b")" + b"\x85" * 120_000),
        "millions of steps": zipped(b"N" + b"q\x00" * 2_100_000),
        "array of objects": zipped(array("O", b"abc")),
        "array of another size": zipped(array("f4", b"abc")),
        "array too large": zipped(array("f4", b"abcd", (GIGA, GIGA))),
        "bomb": zipped({"w": tensor(tiny, (4,), (1,))}, {"0": bytes(20_000_000)}, zipfile.ZIP_DEFLATED),
    }


def array(dtype: str, content: bytes, shape: tuple[int, ...] = (1,)) -> bytes:
    kind = call(named("numpy", "dtype"), dtype, False, True)
    raw = call(named("_codecs", "encode"), content.decode("latin1"), "latin1")
    empty = call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), (0,), "b")
    return empty + value((1, shape, kind, False, raw)) + b"b"


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def encrypted() -> bytes:
    content = bytearray(saved({"w": torch.ones(4)}))
    start = 0
    while (start := content.find(b"PK\x01\x02", start)) >= 0:  # the flags in each entry of the directory
        content[start + 8] |= 1
        start += 4
    return bytes(content)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return buffer.getvalue()


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    return buffer.getvalue()


def others() -> dict[str, bytes]:
    """What is taken for a checkpoint and is none."""
    whole, before = saved({"w": torch.ones(500)}), saved({"w": torch.ones(500)}, _use_new_zipfile_serialization=False)
    return {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "truncated at its end": whole[:-1],
        "truncated, old format": before[: len(before) // 2],
        "truncated at its end, old format": before[:-1],
        "HTML": b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>404</body></html>",
        "JSON": b'{"error": "Entry not found"}',
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "text": b"Access to this model is restricted.",
        "gzip": b"\x1f\x8b\x08" + bytes(50),
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(50),
        "tar": tar(),
        "zeros": bytes(1000),
        "noise": bytes((n * n * 31 + n * 7) % 256 for n in range(4000)),
        "TorchScript": torchscript(),
        "zip of something": other_zip(),
        "two pickles": zipped({}, {}) + zipped({}, {}),
        "encrypted zip": encrypted(),
        "safetensors, endless header": safetensors({}, length=2**63),
        "safetensors, cut header": safetensors({"w": floats(0, 16, [4])}, length=30),
        "safetensors, deep header": safetensors(b'{"a":' * 50_000),
        "safetensors, beyond the end": safetensors({"w": floats(0, GIGA, [GIGA // 4])}),
        "safetensors, overlapping": safetensors({"v": floats(0, 12, [3]), "w": floats(4, 16, [3])}),
        "safetensors, another size": safetensors({"w": floats(0, 16, [5])}),
        "safetensors, endless shape": safetensors({"w": floats(0, 16, [2**40, 2**40])}),
        "safetensors, unknown dtype": safetensors({"w": floats(0, 16, [4], "OBJ")}),
    }


def files(harm: Path) -> dict[str, bytes]:
    """All of them by name."""
    return code(harm) | sizes() | others()
