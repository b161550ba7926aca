"""What a checkpoint of the Hugging Face ecosystem says about its input: preprocessor_config.json, nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upstreams import HIGHEST_RATE, LOWEST_RATE
from upstreams.base import UpstreamError
from upstreams.families.hub import Source
from upstreams.safety.allow_list import printable, shown

# Whose settings a model of each type reads; those left out here read Wav2Vec2FeatureExtractor's.
EXTRACTORS = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "encodec": "EncodecFeatureExtractor",
    "mimi": "EncodecFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}
FILE = "preprocessor_config.json"
LARGEST = 200_000  # memory grows with some settings


class FrontEnd(dict[str, Any]):
    """Settings of a feature extractor by name; those that are asked for must be there, and of the right kind."""

    def __init__(self, settings: Mapping[str, Any], reference: str) -> None:
        super().__init__(settings)
        self.reference = reference

    def whole(self, key: str, least: int = 1, most: int = LARGEST) -> int:
        """A whole number within bounds; raises UpstreamError for anything else."""
        value = self.given(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
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
        return UpstreamError(f"{key} in {FILE} of '{self.reference}' is {shown(self[key])}; it must be {kind}")


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
        told = printable(found) if isinstance(found, str) else shown(found)
        raise UpstreamError(
            f"{FILE} of '{source.reference}' is for a {told}, but a model of type '{kind}' takes a {expected}; "
            "give the file that was published with the model"
        )
    own = content.get("auto_map")
    if isinstance(own, (dict, list, str)) and "AutoFeatureExtractor" in own:
        raise UpstreamError(
            f"{FILE} of '{source.reference}' wants to run code of its own (auto_map), which is not done; "
            "write your own upstream, path/file.py:function, where you trust it"
        )
    settings = FrontEnd(content, source.reference)
    settings.whole("sampling_rate", LOWEST_RATE, HIGHEST_RATE)  # front ends are built for it
    return settings
