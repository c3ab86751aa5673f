"""What values look like: whatever is stored, a look is found, and random ciphertext is never called text."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.recognise import Likeness, Look, form_of, is_random, look_at


def spread(sizes: list[int]) -> list[bytes]:
    """Random bytes of these lengths, the same in every run: now and then random bytes do not look it."""
    source = random.Random(repr(sizes))
    return [source.randbytes(size) for size in sizes]


@given(st.text() | st.binary())
def test_any_value_has_a_form(value: str | bytes) -> None:
    """Nothing that a database can hold makes it fail."""
    assert form_of(value).likeness in Likeness


@given(st.lists(st.text(min_size=1) | st.binary(min_size=1), max_size=30))
def test_any_column_has_a_look(values: list[str | bytes]) -> None:
    """Shares are shares, and a marker is only named when several values begin with it."""
    look = look_at(values)
    assert isinstance(look, Look)
    assert 0 <= look.share <= 1
    assert all(count > 1 for count in look.versions.values())


@settings(derandomize=True)
@given(
    st.sampled_from(["v{}:", "enc:v{}:", "app|k{}|", "key{}.", "a1.k{}:"]),
    st.lists(st.integers(29, 90), min_size=4, max_size=40),
    st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]),
)
def test_marker_of_random_payloads_is_found(
    template: str, sizes: list[int], encode: Callable[[bytes], bytes]
) -> None:
    """Any prefix with a version before random bytes is a marker, and its version is counted."""
    payloads = [encode(payload).decode() for payload in spread(sizes)]
    look = look_at([template.format(1 + at % 2) + payload for at, payload in enumerate(payloads)])
    assert look.likeness is Likeness.CIPHERTEXT
    assert look.marker is not None
    assert look.marker.count("{version}") == 1
    assert len(look.versions) == 2


@settings(derandomize=True)
@given(st.lists(st.integers(28, 200), min_size=1, max_size=50))
def test_random_bytes_are_random(sizes: list[int]) -> None:
    assert is_random(spread(sizes))


@given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ABCDEFG.,", min_size=30), min_size=3))
def test_text_is_not_random(texts: list[str]) -> None:
    assert not is_random([text.encode() for text in texts])
