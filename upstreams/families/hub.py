"""Locate the files of a Hugging Face model: in a folder, in the cache, or on the hub."""

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
    """The files of a model: its folder, or its repository on the hub if `folder` is None."""

    reference: str
    folder: Path | None
    repository: str = ""
    revision: str | None = None  # branch, tag or commit; after the first file, the commit of that file
    read: dict[str, Path] = field(default_factory=dict)  # files found so far, by name

    def find(self, name: str) -> Path | None:
        """Return the path of a file, or None if there is no such file."""
        if self.folder is None:
            path = hub_file(self.repository, name, self.revision)
            self.revision = commit_of(path) or self.revision
        else:
            path = self.folder / name
            path = path if os.path.isfile(path) else None  # False for invalid names too, which may be untrusted
        if path is not None:
            self.read[name] = path
        return path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, None if there is no such file; raises UpstreamError if it is broken."""
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
        """Return the path of the weights, or of their index if they are in several files.

        Raises UpstreamError if there are none, or if a file of the index is missing.
        """
        path = next((path for name in WEIGHTS if (path := self.find(name))), None)
        if path is None:
            raise UpstreamError(f"no weights in '{self.reference}'; it must hold one of {', '.join(WEIGHTS)}")
        names = checkpoints.parts(path) if path.suffix == ".json" else {}
        absent = next((name for name in names if not self.find(name)), None)
        if absent:
            raise UpstreamError(f"'{self.reference}' lacks {absent}, which {path.name} names; download it too")
        return path

    def origin(self) -> dict[str, str]:
        """Return the SHA-256 of every file found so far, by name, and the commit if the source is a repository."""
        commit = {"revision": self.revision} if self.revision else {}
        return checkpoints.digests(self.read.values()) | commit


def locate(reference: str) -> Source:
    """Return the source named by PATH, ID or ID@REVISION; raises UpstreamError if it is neither folder nor hub id."""
    path = checkpoints.expanded_path(reference)
    if reference and path.is_dir():
        return Source(reference, path)
    takes = "hf: takes a folder written by save_pretrained, or a hub id"
    if path.is_file():
        raise UpstreamError(f"'{reference}' is a file; {takes}: give its folder, or fairseq:FILE where it is fairseq's")
    name, at, revision = reference.partition("@")
    if at and checkpoints.expanded_path(name).is_dir():
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
    """Return the commit of a file in the cache, .../snapshots/COMMIT/NAME; None for other paths."""
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None


def hub_file(repository: str, name: str, revision: str | None) -> Path | None:
    """Return the cached path of a repository's file, downloaded if needed; None if there is no such file."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repository, name, revision=revision)
    except errors.HFValidationError as error:
        raise UpstreamError(f"'{repository}' is neither a folder nor a hub id like owner/name") from error
    if cached is None:
        return download(repository, name, revision)
    # Anything else than a path is the cache's record that there is no such file.
    return Path(cached) if isinstance(cached, str) else None


def download(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    if not hub_reachable():
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


def hub_reachable() -> bool:
    """Return whether the hub can be reached; without a network this avoids a minute of retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return True  # the proxy resolves host names
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def refuse_unless_cached(repository: str, revision: str | None) -> None:
    """Raise UpstreamError unless the cache has the model's config.json; called when the hub is out of reach."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
        model = f"'{repository}'" + (f" at revision '{revision}'" if revision else "")
        message = f"{model} is no folder and not in the Hugging Face cache, and the hub is out of reach"
        raise UpstreamError(f"{message}; download it where there is a network, then give the folder")
