"""Speech from eSpeak NG, whose library and voices come with the package espeakng-loader (GPL-3, called, not copied)."""

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
    """rate: words per minute. pitch, range: eSpeak's own scales, 0 to 99, whose neutral value is 50."""

    rate: int
    pitch: int
    range: int


class Library(NamedTuple):
    """The loaded library, its sample rate in Hz and the list that its callback fills."""

    calls: ctypes.CDLL
    sample_rate: int
    pieces: list[bytes]
    callback: Callable[..., int]  # ctypes keeps no reference of its own


@cache
def library() -> Library:
    """Load and initialise eSpeak NG once; a process that forks afterwards passes it on ready for use."""
    try:
        import espeakng_loader

        calls = ctypes.CDLL(espeakng_loader.get_library_path())
        sample_rate = calls.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), NO_EXIT)
    except (ImportError, OSError) as error:
        raise UserError(f"the embedded corpus needs eSpeak NG ({error}); try: pip install espeakng-loader") from error
    if sample_rate <= 0:
        raise UserError("eSpeak NG does not start; reinstall it: pip install --force-reinstall espeakng-loader")
    calls.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breathy voices draw noise, from a seed that is the time otherwise
    calls.espeak_ListVoices(None)  # reads the 250 voice files now, not in every fork
    pieces: list[bytes] = []
    return Library(calls, sample_rate, pieces, _collect_into(calls, pieces))


def _collect_into(calls: ctypes.CDLL, pieces: list[bytes]) -> Callable[..., int]:
    def collect(samples, count: int, events) -> int:
        if count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = CALLBACK(collect)
    calls.espeak_SetSynthCallback(callback)
    return callback


def speak(text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
    """Read a text aloud: float32 samples (S,) in [-1, 1] and their rate in Hz.

    voice: a language, or language+variant ("en-us+f2"). The same samples every time: the library keeps state from one
    utterance to the next that no call resets, so each is spoken in a fork of this process, where it is the first.
    Call it from a process without threads.
    """
    sample_rate = library().sample_rate
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(writer, text, voice, prosody)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        samples = np.frombuffer(pipe.read(), np.int16)
    if os.waitpid(child, 0)[1] or not len(samples):
        raise UserError(f"eSpeak NG cannot say {text!r} in voice {voice!r}; reinstall espeakng-loader")
    return samples.astype(np.float32) / 32768, sample_rate


def _answer(writer: int, text: str, voice: str, prosody: Prosody) -> NoReturn:
    """What the fork does: write the samples to the pipe and end without the parent's clean-up."""
    status = 1
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(_first_utterance(text, voice, prosody))
        status = 0
    finally:
        os._exit(status)


def _first_utterance(text: str, voice: str, prosody: Prosody) -> bytes:
    calls, _, pieces, _ = library()
    if calls.espeak_SetVoiceByName(voice.encode()) != 0:
        return b""
    for parameter, value in ((RATE, prosody.rate), (PITCH, prosody.pitch), (RANGE, prosody.range)):
        calls.espeak_SetParameter(parameter, value, 0)
    data = text.encode() + b"\0"
    calls.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, UTF8, None, None)
    calls.espeak_Synchronize()
    return b"".join(pieces)
