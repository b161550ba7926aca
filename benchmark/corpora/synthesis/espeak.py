"""Speech synthesis with eSpeak NG. Its library and voices come with the package espeakng-loader (GPL-3, not copied)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, NoReturn

import numpy as np

from benchmark.errors import UserError

RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback before espeak_Synth returns
NO_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
UTF8 = 1  # espeakCHARS_UTF8
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Prosody(NamedTuple):
    """The prosody parameters of eSpeak. rate: words per minute. pitch, range: 0 to 99, neutral at 50."""

    rate: int
    pitch: int
    range: int


class Library(NamedTuple):
    """The loaded library, its sample rate in Hz, and the list to which its callback appends audio."""

    functions: ctypes.CDLL
    sample_rate: int
    chunks: list[bytes]
    callback: Callable[..., int]  # referenced here because ctypes holds no reference to it


@cache
def espeak_library() -> Library:
    """Load and initialise eSpeak NG once; forks of this process inherit the initialised library."""
    try:
        import espeakng_loader

        functions = ctypes.CDLL(espeakng_loader.get_library_path())
        sample_rate = functions.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), NO_EXIT)
    except (ImportError, OSError) as error:
        raise UserError(f"the embedded corpus needs eSpeak NG ({error}); try: pip install espeakng-loader") from error
    if sample_rate <= 0:
        raise UserError("eSpeak NG does not start; reinstall it: pip install --force-reinstall espeakng-loader")
    functions.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the noise in breathy voices; by default it is the time
    functions.espeak_ListVoices(None)  # reads the 250 voice files now rather than in every fork
    chunks: list[bytes] = []
    return Library(functions, sample_rate, chunks, _set_callback(functions, chunks))


def _set_callback(functions: ctypes.CDLL, chunks: list[bytes]) -> Callable[..., int]:
    """Make the library append its audio to `chunks`, and return the callback that does so."""

    def collect(samples, count: int, events) -> int:
        if count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = CALLBACK(collect)
    functions.espeak_SetSynthCallback(callback)
    return callback


def speak(text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
    """Synthesise a text, and return float32 samples (S,) in [-1, 1] and their rate in Hz.

    voice: a language, or language+variant ("en-us+f2"). The result is deterministic: each utterance is the first one
    in a fork of this process, because the library keeps state between utterances that no call resets.
    Call this function from a process without threads.
    """
    sample_rate = espeak_library().sample_rate
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _write_and_exit(writer, text, voice, prosody)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        samples = np.frombuffer(pipe.read(), np.int16)
    if os.waitpid(child, 0)[1] or not len(samples):
        raise UserError(f"eSpeak NG cannot say {text!r} in voice {voice!r}; reinstall espeakng-loader")
    return samples.astype(np.float32) / 32768, sample_rate


def _write_and_exit(writer: int, text: str, voice: str, prosody: Prosody) -> NoReturn:
    """Write the samples to the pipe, and end the fork without the clean-up of its parent."""
    status = 1
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(_speech_bytes(text, voice, prosody))
        status = 0
    finally:
        os._exit(status)


def _speech_bytes(text: str, voice: str, prosody: Prosody) -> bytes:
    """Return the 16-bit samples of a text, b"" if there is no such voice."""
    functions, _, chunks, _ = espeak_library()
    if functions.espeak_SetVoiceByName(voice.encode()) != 0:
        return b""
    for parameter, value in ((RATE, prosody.rate), (PITCH, prosody.pitch), (RANGE, prosody.range)):
        functions.espeak_SetParameter(parameter, value, 0)
    text_bytes = text.encode() + b"\0"
    functions.espeak_Synth(text_bytes, ctypes.c_size_t(len(text_bytes)), 0, 1, 0, UTF8, None, None)
    functions.espeak_Synchronize()
    return b"".join(chunks)
