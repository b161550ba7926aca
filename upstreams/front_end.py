"""What a checkpoint of the Hugging Face ecosystem says about its input: preprocessor_config.json, nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upstreams.base import UpstreamError
from upstreams.hub import Source

# Whose settings a model of each type reads; those left out here read Wav2Vec2FeatureExtractor's.
EXTRACTORS = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "encodec": "EncodecFeatureExtractor",
    "mimi": "EncodecFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}
FILE = "preprocessor_config.json"


class FrontEnd(dict[str, Any]):
    """Settings of a feature extractor by name; those that are asked for must be there, and of the right kind."""

    def __init__(self, settings: Mapping[str, Any], reference: str) -> None:
        super().__init__(settings)
        self.reference = reference

    def whole(self, key: str) -> int:
        """A whole number above zero; raises UpstreamError for anything else."""
        value = self.given(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a whole number above zero")
        return value

    def real(self, key: str) -> float:
        """A finite number; raises UpstreamError for anything else."""
        value = self.given(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise self.wrong(key, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false; raises UpstreamError for anything else."""
        value = self.given(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def given(self, key: str) -> Any:
        if key not in self:
            raise UpstreamError(
                f"{FILE} of '{self.reference}' has no '{key}', and it is not guessed; copy the file from where the "
                "model was published, or save its feature extractor there"
            )
        return self[key]

    def wrong(self, key: str, kind: str) -> UpstreamError:
        return UpstreamError(f"{key} in {FILE} of '{self.reference}' is {self[key]!r}; it must be {kind}")


def front_end(source: Source, kind: str) -> FrontEnd:
    """Settings of the feature extractor saved with a model of a type.

    Raises UpstreamError where they are absent, or those of another extractor, or of one that is code of its own.
    """
    content = source.read_json(FILE)
    if content is None:
        content = (source.read_json("processor_config.json") or {}).get("feature_extractor")
    if not isinstance(content, dict):
        raise UpstreamError(
            f"no {FILE} in '{source.reference}', so how its input is sampled and normalised is unknown; copy it from "
            "where the model was published, or save its feature extractor there"
        )
    expected = EXTRACTORS.get(kind, "Wav2Vec2FeatureExtractor")
    found = content.get("feature_extractor_type", expected)  # the files of 2021 lack it
    if found != expected:
        raise UpstreamError(
            f"{FILE} of '{source.reference}' is for a {found}, but a model of type '{kind}' takes a {expected}; "
            "give the file that was published with the model"
        )
    if "AutoFeatureExtractor" in str(content.get("auto_map")):
        raise UpstreamError(
            f"{FILE} of '{source.reference}' wants to run code of its own (auto_map), which is not done; "
            "write your own upstream, path/file.py:function, where you trust it"
        )
    return FrontEnd(content, source.reference)
