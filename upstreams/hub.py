"""Where the files of a Hugging Face model are: in a folder, in the cache, or on the hub."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from upstreams.base import UpstreamError
from upstreams.checkpoints import parts

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class Source(NamedTuple):
    """A model's folder, or its repository on the hub where there is no folder."""

    reference: str
    folder: Path | None

    def find(self, name: str) -> Path | None:
        """Path of one of its files, None where it has no such file."""
        if self.folder is None:
            return from_hub(self.reference, name)
        return self.folder / name if (self.folder / name).is_file() else None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Content of one of its files, None where it has no such file; raises UpstreamError where that is broken."""
        path = self.find(name)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UpstreamError(f"{name} of '{self.reference}' is not JSON ({error}); download it again") from error
        if not isinstance(content, dict):
            raise UpstreamError(f"{name} of '{self.reference}' is not a JSON object; download it again")
        return content

    def weights(self) -> Path:
        """Path of its weights, or of their index if they are in several files; raises UpstreamError without any."""
        path = next((path for name in WEIGHTS if (path := self.find(name))), None)
        if path is None:
            raise UpstreamError(f"no weights in '{self.reference}'; it must hold one of {', '.join(WEIGHTS)}")
        absent = [name for name in parts(path) if not self.find(name)] if path.suffix == ".json" else []
        if absent:
            raise UpstreamError(f"'{self.reference}' lacks {absent[0]}, which {path.name} names; download it too")
        return path


def locate(reference: str) -> Source:
    """The folder or repository that a reference names; raises UpstreamError where it can be neither."""
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        return Source(reference, path)
    looks_local = reference.startswith((".", "/", "~")) or reference.count("/") > 1 or not reference
    if looks_local or path.exists():
        raise UpstreamError(f"no folder '{reference}'; hf: takes a folder written by save_pretrained, or a hub id")
    return Source(reference, None)


def from_hub(repository: str, name: str) -> Path | None:
    """Path of a repository's file in the cache, downloaded if need be; None where the repository has no such file."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repository, name)
    except errors.HFValidationError as error:
        raise UpstreamError(f"'{repository}' is neither a folder nor a hub id like owner/name") from error
    if cached is None:
        return download(repository, name)
    return Path(cached) if isinstance(cached, str) else None  # else the cache knows that there is no such file


def download(repository: str, name: str) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    if not reachable():
        refuse_unless_cached(repository)
        return None
    try:
        return Path(hf_hub_download(repository, name))
    except errors.RepositoryNotFoundError as error:
        raise UpstreamError(f"no folder and no public repository '{repository}' on the hub; check the name") from error
    except errors.LocalEntryNotFoundError:
        refuse_unless_cached(repository)
    except errors.EntryNotFoundError:
        pass
    except OSError as error:
        raise UpstreamError(f"'{repository}' cannot be downloaded from the hub: {error}") from error
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


def refuse_unless_cached(repository: str) -> None:
    """Raise UpstreamError, as the hub is out of reach, unless the cache has the model, if without some file."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, "config.json"), str):
        message = f"'{repository}' is no folder and not in the Hugging Face cache, and the hub is out of reach"
        raise UpstreamError(f"{message}; download it where there is a network, then give the folder")
