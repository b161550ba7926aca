"""Input settings of Hugging Face checkpoints, read from preprocessor_config.json; no value is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upstreams import HIGHEST_RATE, LOWEST_RATE
from upstreams.base import UpstreamError
from upstreams.families.hub import Source
from upstreams.safety.allow_list import printable, short_repr

# Feature extractor class by model type; all other types use Wav2Vec2FeatureExtractor.
EXTRACTORS = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "encodec": "EncodecFeatureExtractor",
    "mimi": "EncodecFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}
FILE = "preprocessor_config.json"
LARGEST = 200_000  # limit of whole numbers, because memory grows with some of them


class FrontEnd(dict[str, Any]):
    """Settings of a feature extractor by name; the accessors raise UpstreamError for missing or invalid values."""

    def __init__(self, settings: Mapping[str, Any], reference: str) -> None:
        super().__init__(settings)
        self.reference = reference

    def whole(self, key: str, least: int = 1, most: int = LARGEST) -> int:
        """Return a whole number from `least` to `most`; raises UpstreamError for anything else."""
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"a whole number from {least} to {most}")
        return value

    def real(self, key: str) -> float:
        """Return a finite number; raises UpstreamError for anything else."""
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise self.error(key, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a boolean; raises UpstreamError for anything else."""
        value = self.required(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def required(self, key: str) -> Any:
        if key not in self:
            raise UpstreamError(
                f"{FILE} of '{self.reference}' has no '{key}', and it is not guessed; copy the file from where the "
                "model was published, or save its feature extractor there"
            )
        return self[key]

    def error(self, key: str, kind: str) -> UpstreamError:
        return UpstreamError(f"{key} in {FILE} of '{self.reference}' is {short_repr(self[key])}; it must be {kind}")


def load_front_end(source: Source, kind: str) -> FrontEnd:
    """Return the settings of the feature extractor saved with a model of type `kind`.

    Raises UpstreamError if they are missing, belong to another extractor, or name custom code (auto_map).
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
    extractor = content.get("feature_extractor_type", expected)  # files from 2021 do not have this key
    if extractor != expected:
        name = printable(extractor) if isinstance(extractor, str) else short_repr(extractor)
        raise UpstreamError(
            f"{FILE} of '{source.reference}' is for a {name}, but a model of type '{kind}' takes a {expected}; "
            "give the file that was published with the model"
        )
    custom_code = content.get("auto_map")
    if isinstance(custom_code, (dict, list, str)) and "AutoFeatureExtractor" in custom_code:
        raise UpstreamError(
            f"{FILE} of '{source.reference}' names custom code (auto_map), which is never run; "
            "write your own upstream, path/file.py:function, if you trust it"
        )
    settings = FrontEnd(content, source.reference)
    settings.whole("sampling_rate", LOWEST_RATE, HIGHEST_RATE)  # mel filters and other parts are built for this rate
    return settings
