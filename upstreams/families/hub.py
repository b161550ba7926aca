"""Where the files of a Hugging Face model are: in a folder, in the cache, or on the hub."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from upstreams.base import UpstreamError
from upstreams.safety import checkpoints

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
REVISION = re.compile(r"\w[\w.+/-]*")


@dataclass
class Source:
    """A model's folder, or its repository on the hub where there is no folder."""

    reference: str
    folder: Path | None
    repository: str = ""
    revision: str | None = None  # branch, tag or commit; once a file was found, the commit that all others come from
    read: dict[str, Path] = field(default_factory=dict)  # files found so far, by name

    def find(self, name: str) -> Path | None:
        """Path of one of its files, None where it has no such file."""
        if self.folder is None:
            path = from_hub(self.repository, name, self.revision)
            self.revision = commit_of(path) or self.revision
        else:
            path = self.folder / name
            path = path if os.path.isfile(path) else None  # whatever the name is, which may be a stranger's
        if path is not None:
            self.read[name] = path
        return path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Content of one of its files, None where it has no such file; raises UpstreamError where that is broken."""
        path = self.find(name)
        if path is None:
            return None
        try:
            content = checkpoints.read_json(path)
        except (ValueError, RecursionError) as error:
            if isinstance(error, UpstreamError):
                raise
            raise UpstreamError(
                f"{name} of '{self.reference}' is not JSON ({checkpoints.one_line(error)}); download it again"
            ) from error
        if not isinstance(content, dict):
            raise UpstreamError(f"{name} of '{self.reference}' is not a JSON object; download it again")
        return content

    def weights(self) -> Path:
        """Path of its weights, or of their index if they are in several files; raises UpstreamError without any."""
        path = next((path for name in WEIGHTS if (path := self.find(name))), None)
        if path is None:
            raise UpstreamError(f"no weights in '{self.reference}'; it must hold one of {', '.join(WEIGHTS)}")
        names = checkpoints.parts(path) if path.suffix == ".json" else {}
        absent = next((name for name in names if not self.find(name)), None)
        if absent:
            raise UpstreamError(f"'{self.reference}' lacks {absent}, which {path.name} names; download it too")
        return path

    def origin(self) -> dict[str, str]:
        """SHA-256 of every file found so far by name, and the commit they come from where that is a repository's."""
        known = {"revision": self.revision} if self.revision else {}
        return checkpoints.digests(self.read.values()) | known


def locate(reference: str) -> Source:
    """The folder or repository that PATH, ID or ID@REVISION names; raises UpstreamError where it can be neither."""
    path = checkpoints.expanded(reference)
    if reference and path.is_dir():
        return Source(reference, path)
    takes = "hf: takes a folder written by save_pretrained, or a hub id"
    if path.is_file():
        raise UpstreamError(f"'{reference}' is a file; {takes}: give its folder, or fairseq:FILE where it is fairseq's")
    name, at, revision = reference.partition("@")
    if at and checkpoints.expanded(name).is_dir():
        if revision.lower() == "random":
            raise UpstreamError(f"'{name}' has no revision '{revision}'; its random twin is written {name}@random")
        raise UpstreamError(f"'{name}' is a folder, which has no revisions; give it without '@{revision}'")
    if "?" in reference:
        options = reference.partition("?")[2]
        raise UpstreamError(f"'{reference}' ends in options, '?{options}', and models in folders take none; {takes}")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or not name
    if looks_local or path.exists():
        raise UpstreamError(f"no folder '{reference}'; {takes}")
    if at and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UpstreamError(f"'{revision}' is no revision of '{name}'; give a branch, a tag or a commit after the @")
    return Source(reference, None, name, revision or None)


def commit_of(path: Path | None) -> str | None:
    """The commit that a file in the cache, .../snapshots/COMMIT/NAME, is of."""
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None


def from_hub(repository: str, name: str, revision: str | None) -> Path | None:
    """Path of a repository's file in the cache, downloaded if need be; None where the repository has no such file."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repository, name, revision=revision)
    except errors.HFValidationError as error:
        raise UpstreamError(f"'{repository}' is neither a folder nor a hub id like owner/name") from error
    if cached is None:
        return download(repository, name, revision)
    return Path(cached) if isinstance(cached, str) else None  # else the cache knows that there is no such file


def download(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    if not reachable():
        refuse_unless_cached(repository, revision)
        return None
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except errors.RepositoryNotFoundError as error:
        raise UpstreamError(f"no folder and no public repository '{repository}' on the hub; check the name") from error
    except errors.RevisionNotFoundError as error:
        raise UpstreamError(f"'{repository}' has no revision '{revision}' on the hub; check its history") from error
    except errors.LocalEntryNotFoundError:
        refuse_unless_cached(repository, revision)
    except errors.EntryNotFoundError:
        pass
    except OSError as error:
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"'{repository}' cannot be downloaded from the hub: {detail}") from error
    return None


def reachable() -> bool:
    """Whether the hub may answer; spares a minute of retries where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return True  # names are resolved by the proxy
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def refuse_unless_cached(repository: str, revision: str | None) -> None:
    """Raise UpstreamError, as the hub is out of reach, unless the cache has the model, if without some file."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
        what = f"'{repository}'" + (f" at revision '{revision}'" if revision else "")
        message = f"{what} is no folder and not in the Hugging Face cache, and the hub is out of reach"
        raise UpstreamError(f"{message}; download it where there is a network, then give the folder")
