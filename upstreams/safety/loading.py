"""Load a file of weights as plain values, by safetensors or by torch's restricted unpickler (weights_only=True).

Before torch reads a pickle, `pickle_scanner` checks it without creating any object.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import pickletools
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import load as torch_load  # `safe_loading` replaces torch.load itself

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import ADVICE, FEW_VALUES, RefusedError, inert, plain_value, printable, stand_in
from upstreams.safety.pickle_scanner import PickleScanner

AGAIN = "download it again"
LARGEST_PICKLE = 64 << 20  # bytes, without the weights themselves
LARGEST_HEADER = 100 << 20  # bytes, the limit of safetensors
LARGEST_JSON = 20 << 20  # bytes; published configurations and indexes have at most 1 << 20
_loading = threading.Lock()  # torch has a single allow-list for all threads
OTHERS = {  # first bytes of files that are often mistaken for checkpoints
    b"<": "a web page, not weights; download the file behind it",
    b"version https://git-lfs": "a git-lfs pointer, not weights; run git lfs pull",
    b"\x1f\x8b": "a gzip archive; unpack it, and give the file within",
    b"bzh": "a bzip2 archive; unpack it, and give the file within",
    b"\xfd7zxz": "an xz archive; unpack it, and give the file within",
    b"7z\xbc\xaf": "a 7z archive; unpack it, and give the file within",
    b"rar!": "a rar archive; unpack it, and give the file within",
    b"\x89hdf": "an HDF5 file, not torch's; convert it",
}


def load_checkpoint(path: str | Path) -> Any:
    """Return the content of a .safetensors file or torch checkpoint as plain values, tensors and `StandIn` objects.

    Only the functions that rebuild dense tensors and small values are ever called for a file.
    Raises UpstreamError for a file that is missing, empty, broken or no checkpoint, and for a pickle that calls code.
    """
    with open_regular_file(path) as file:
        return read_stream(file, str(path))


def expanded_path(text: str | os.PathLike[str]) -> Path:
    """Return a path that a user typed, with ~ expanded; nothing needs to exist there.

    Raises UpstreamError for text that cannot be a path, so that is_file() and is_dir() then raise no OSError.
    """
    shown = printable(str(text))
    try:
        path = Path(text).expanduser()
        os.stat(path)
    except RuntimeError as error:  # from expanduser
        raise UpstreamError(f"'{shown}' begins with the home folder of an unknown user; give the whole path") from error
    except ValueError as error:  # NUL, or characters that the file system cannot encode
        raise UpstreamError(f"'{shown}' contains characters that no path can contain; check what was typed") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise UpstreamError(f"'{shown}' cannot be a path here ({error.strerror}); give another") from error
    return path


@contextmanager
def open_regular_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a regular file; raises UpstreamError for pipes and devices, which may block, and for unreadable files."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UpstreamError(f"no file '{path}'; give the path of a checkpoint") from error
    except OSError as error:
        raise UpstreamError(f"checkpoint '{path}' cannot be opened ({error.strerror}); give a readable file") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UpstreamError(f"no file '{path}', but a folder or device; give the path of a checkpoint")
    with os.fdopen(number, "rb") as file:
        yield file


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises ValueError or RecursionError if invalid, UpstreamError above 20 MB."""
    with open_regular_file(path) as file:
        text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise UpstreamError(f"'{path}' has more than {LARGEST_JSON >> 20} MB, which is no configuration; {AGAIN}")
    return json.loads(text.decode("utf-8"))


def read_stream(file: IO[bytes], name: str) -> Any:
    """Load an open file from its beginning, as `load_checkpoint` does; `name` appears in messages."""
    try:
        return content(file, name)
    except RefusedError as error:
        raise UpstreamError(f"checkpoint '{name}' {error}") from error


def content(file: IO[bytes], name: str) -> Any:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(512)
    safetensors = is_safetensors(start, size)
    if not safetensors:
        refuse_other_files(name, start, file)
    file.seek(0)
    try:
        if safetensors:
            return safetensors_content(file, name)
        scanner = (scan_archive if start.startswith(b"PK\x03\x04") else scan_legacy_pickles)(file, size)
        file.seek(0)
        return plain_value(torch_content(file, scanner.names), FEW_VALUES + 4 * scanner.steps)
    except UpstreamError:
        raise
    except pickle.UnpicklingError as error:
        raise RefusedError(f"is truncated, or holds more than weights; {ADVICE}") from error
    except Exception as error:  # invalid bytes can cause any exception
        raise UpstreamError(
            f"checkpoint '{name}' is truncated or no checkpoint ({one_line(error)}); {AGAIN}"
        ) from error


def refuse_other_files(name: str, start: bytes, file: IO[bytes]) -> None:
    """Raise UpstreamError for a file whose first bytes are those of another format."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise UpstreamError(f"checkpoint '{name}' is empty; {AGAIN}")
    for mark, description in OTHERS.items():
        if head.startswith(mark):
            raise UpstreamError(f"checkpoint '{name}' is {description}")
    if start[257:262] == b"ustar":
        raise UpstreamError(f"checkpoint '{name}' is a tar archive; unpack it, or save its content with a newer torch")
    if head[:1] in (b"{", b"[") and is_json(start + file.read(1 << 20)):
        raise UpstreamError(f"checkpoint '{name}' is JSON, not weights; download the file behind it")
    file.seek(0)
    if is_text(file.read(1 << 16)):
        raise UpstreamError(f"checkpoint '{name}' is text, not weights; give what torch.save or safetensors wrote")


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def is_text(start: bytes) -> bool:
    """Whether a file begins with text that is no pickle of protocol 0, which is text as well."""
    if not all(letter >= 32 or letter in b"\t\n\r\f" for letter in start):
        return False
    try:
        start.decode("utf-8", "strict" if len(start) < 1 << 16 else "ignore")
        list(pickletools.genops(start))
    except UnicodeDecodeError:
        return False
    except Exception:  # genops raises many kinds of exception for invalid pickles
        return True
    return False


def is_safetensors(start: bytes, size: int) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= min(size - 8, LARGEST_HEADER)


def safetensors_content(file: IO[bytes], name: str) -> Any:
    from safetensors.torch import load as load_bytes
    from safetensors.torch import load_file

    try:
        return load_bytes(file.read()) if isinstance(file, io.BytesIO) else load_file(name)
    except Exception as error:
        raise UpstreamError(
            f"checkpoint '{name}' is broken or no safetensors file ({one_line(error)}); {AGAIN}"
        ) from error


def scan_archive(file: IO[bytes], size: int) -> PickleScanner:
    """Scan the pickle in a zip archive; raises RefusedError for an archive that torch.save would not write."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in entries):
            raise RefusedError(f"is TorchScript, which is a program, not weights; {ADVICE}")
        starts = [entry.header_offset for entry in archive.infolist()]
        if len(pickles) != 1 or len(entries) != len(starts) or min(starts) or archive.comment:
            raise RefusedError(f"is a zip archive, and none that torch.save writes; {AGAIN}")
        if any(entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise RefusedError(f"is a compressed or encrypted zip archive, which torch.save does not write; {ADVICE}")
        if sum(entry.file_size for entry in entries.values()) > size or entries[pickles[0]].file_size > LARGEST_PICKLE:
            raise RefusedError(f"declares more than it holds, or far more beside weights than they need; {AGAIN}")
        prefix = pickles[0][: -len("data.pkl")] + "data/"
        records = {name[len(prefix) :]: entry.file_size for name, entry in entries.items() if name.startswith(prefix)}
        scanner = PickleScanner(records, size)
        scanner.run(io.BytesIO(archive.read(pickles[0])))
        return scanner


def scan_legacy_pickles(file: IO[bytes], size: int) -> PickleScanner:
    """Scan the pickles that precede the weights in the format of torch up to 1.5; raises RefusedError for others."""
    stream, scanner = io.BytesIO(file.read(LARGEST_PICKLE)), PickleScanner(None, size)
    if scanner.run(stream) != torch.serialization.MAGIC_NUMBER:
        raise RefusedError(f"is a pickle that torch.save did not write; {ADVICE}")
    for _ in ("version", "machine", "objects", "storages"):
        scanner.run(stream)
    return scanner


def torch_content(file: IO[bytes], names: set[str]) -> Any:
    """Load a file by torch's restricted unpickler, with stand-ins for those of the names that are inert."""
    allowed: list[Any] = [(stand_in(name), name) for name in names if inert(name)]
    with _loading, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_load(file, map_location="cpu", weights_only=True)


def one_line(error: BaseException) -> str:
    return printable(str(error) or type(error).__name__)
