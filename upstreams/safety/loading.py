"""Read a file of weights as plain values: safetensors, or what torch's restricted unpickler makes of a pickle."""

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
from torch.serialization import load as torch_load  # `only_safe` replaces torch.load itself

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import ADVICE, FEW_VALUES, RefusedError, inert, plain, printable, stand_in
from upstreams.safety.pickle_scanner import Rehearsal

AGAIN = "download it again"
LARGEST_PICKLE = 64 << 20  # bytes beside the weights themselves
LARGEST_HEADER = 100 << 20  # bytes, which safetensors sets
LARGEST_JSON = 20 << 20  # bytes; published configurations and indexes have 1 << 20 at most
_loading = threading.Lock()  # torch has one allow-list for all threads
OTHERS = {  # first bytes of what people take for a checkpoint
    b"<": "a web page, not weights; download the file behind it",
    b"version https://git-lfs": "a git-lfs pointer, not weights; run git lfs pull",
    b"\x1f\x8b": "a gzip archive; unpack it, and give the file within",
    b"bzh": "a bzip2 archive; unpack it, and give the file within",
    b"\xfd7zxz": "an xz archive; unpack it, and give the file within",
    b"7z\xbc\xaf": "a 7z archive; unpack it, and give the file within",
    b"rar!": "a rar archive; unpack it, and give the file within",
    b"\x89hdf": "an HDF5 file, not torch's; convert it",
}


def load(path: str | Path) -> Any:
    """What a .safetensors file or a torch checkpoint holds, as plain values, tensors and `standins.StandIn`.

    Raises UpstreamError for what is missing, empty, broken or no checkpoint, and for pickles that want to run code:
    nothing in the file is ever called but what rebuilds dense tensors.
    """
    with opened(path) as file:
        return read_stream(file, str(path))


def expanded(text: str | os.PathLike[str]) -> Path:
    """Where a path that a user typed leads, if to nothing; raises UpstreamError for what can be none, or not be asked.

    Whether it is a file or a folder can then be asked of it without an OSError.
    """
    told = printable(str(text))
    try:
        path = Path(text).expanduser()
        os.stat(path)
    except RuntimeError as error:  # from expanduser
        raise UpstreamError(f"'{told}' begins with the home of nobody known here; give the whole path") from error
    except ValueError as error:  # NUL, or letters that file names are not made of
        raise UpstreamError(f"'{told}' can be no path, by the letters in it; check what was typed") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise UpstreamError(f"'{told}' cannot be a path here ({error.strerror}); give another") from error
    return path


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A regular file; raises UpstreamError for others before they can block or have no end, and for unreadable ones."""
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
    """Content of a JSON file; raises ValueError or RecursionError where it is none, UpstreamError over 20 MB."""
    with opened(path) as file:
        text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise UpstreamError(f"'{path}' has more than {LARGEST_JSON >> 20} MB, which is no configuration; {AGAIN}")
    return json.loads(text.decode("utf-8"))


def read_stream(file: IO[bytes], name: str) -> Any:
    """As `load`, from the beginning of an open file with a name for messages."""
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
            return of_safetensors(file, name)
        rehearsal = (rehearse_archive if start.startswith(b"PK\x03\x04") else rehearse_pickles)(file, size)
        file.seek(0)
        return plain(of_torch(file, rehearsal.names), FEW_VALUES + 4 * rehearsal.steps)
    except UpstreamError:
        raise
    except pickle.UnpicklingError as error:
        raise RefusedError(f"is truncated, or holds more than weights; {ADVICE}") from error
    except Exception as error:  # a stranger's bytes can make it raise anything
        raise UpstreamError(
            f"checkpoint '{name}' is truncated or no checkpoint ({one_line(error)}); {AGAIN}"
        ) from error


def refuse_other_files(name: str, start: bytes, file: IO[bytes]) -> None:
    """Raise UpstreamError for files that are something else, known by their first bytes."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise UpstreamError(f"checkpoint '{name}' is empty; {AGAIN}")
    for mark, what in OTHERS.items():
        if head.startswith(mark):
            raise UpstreamError(f"checkpoint '{name}' is {what}")
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
    """Whether a file begins with lines of text, and not with one of the oldest pickles, which are text too."""
    if not all(letter >= 32 or letter in b"\t\n\r\f" for letter in start):
        return False
    try:
        start.decode("utf-8", "strict" if len(start) < 1 << 16 else "ignore")
        list(pickletools.genops(start))
    except UnicodeDecodeError:
        return False
    except Exception:  # of many kinds, for what is no pickle
        return True
    return False


def is_safetensors(start: bytes, size: int) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= min(size - 8, LARGEST_HEADER)


def of_safetensors(file: IO[bytes], name: str) -> Any:
    from safetensors.torch import load as of_bytes
    from safetensors.torch import load_file

    try:
        return of_bytes(file.read()) if isinstance(file, io.BytesIO) else load_file(name)
    except Exception as error:
        raise UpstreamError(
            f"checkpoint '{name}' is broken or no safetensors file ({one_line(error)}); {AGAIN}"
        ) from error


def rehearse_archive(file: IO[bytes], size: int) -> Rehearsal:
    """What the pickle in a zip archive asks for; raises RefusedError for archives that torch does not write."""
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
        rehearsal = Rehearsal(records, size)
        rehearsal.run(io.BytesIO(archive.read(pickles[0])))
        return rehearsal


def rehearse_pickles(file: IO[bytes], size: int) -> Rehearsal:
    """What the pickles before the weights ask for, in the format that torch wrote up to 1.5."""
    stream, rehearsal = io.BytesIO(file.read(LARGEST_PICKLE)), Rehearsal(None, size)
    if rehearsal.run(stream) != torch.serialization.MAGIC_NUMBER:
        raise RefusedError(f"is a pickle that torch.save did not write; {ADVICE}")
    for _ in ("version", "machine", "objects", "storages"):
        rehearsal.run(stream)
    return rehearsal


def of_torch(file: IO[bytes], names: set[str]) -> Any:
    """The file's objects, made by torch's restricted unpickler; its allow-list is what was asked for and is inert."""
    listed: list[Any] = [(stand_in(name), name) for name in names if inert(name)]
    with _loading, torch.serialization.safe_globals(listed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_load(file, map_location="cpu", weights_only=True)


def one_line(error: BaseException) -> str:
    return printable(str(error) or type(error).__name__)
