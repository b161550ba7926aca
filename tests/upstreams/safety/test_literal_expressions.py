from __future__ import annotations

import ast
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstreams.base import UpstreamError
from upstreams.safety.literal_expressions import literal_value


@pytest.mark.parametrize(
    "text",
    [
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "[(512, 10, 5)] + 8 * [(512, 8, 4)]",
        " (1, -2.5, 'a', None, True) ",
        "[[1]] * 0",
        "2 * 3 + 1.5",
        "'ab' * 3",
        "[]",
    ],
)
def test_expressions_of_configurations_have_the_value_that_python_gives_them(text: str) -> None:
    assert literal_value(text) == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "open",
        "[1][0]",
        "{1: 2}",
        "f'{1}'",
        "2 ** 9",
        "10 ** 10 ** 10",
        "9" * 5000,
        "9999999999 * 9999999999",
        "[0] * 10 ** 9",
        "[0] * 1000000000",
        "1000000000 * (0,)",
        "'a' * 1000000000",
        "[[[[[0] * 99] * 99] * 99] * 99] * 99",
        "[0] * 9999 + [0] * 9999",
        "1 + [2]",
        "[1] * 2.5",
        "[1] * [2]",
        "1 / 2",
        "1 if 2 else 3",
        "import os",
        "a = 1",
        "(" * 5000,
        "-" * 9000 + "1",
        "+".join(["[1]"] * 3000),
        "[1",
        "\0",
        "",
        "1" * 20_000,
    ],
)
def test_other_expressions_are_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(UpstreamError, match="plain values"):
        literal_value(text)
    assert time.perf_counter() - start < 5


def test_what_a_stranger_wrote_cannot_move_the_terminal() -> None:
    with pytest.raises(UpstreamError) as caught:
        literal_value("[1]\0\x1b[2J" + "x" * 500)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


def test_what_is_no_text_is_refused() -> None:
    for given_value in (None, 3, [(512, 10, 5)]):
        with pytest.raises(UpstreamError, match="plain values"):
            literal_value(given_value)  # type: ignore[arg-type]


@given(st.recursive(st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_printed_lists_of_numbers_are_read_back(value: object) -> None:
    assert literal_value(repr(value)) == ast.literal_eval(repr(value))
