"""A value in a document, read and written: whatever the document, only what was meant changes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrap.errors import ResealMismatch, ValueRefused
from rewrap.model import FieldColumn, Location, Path, Role
from rewrap.packed import ELEMENT, PART
from rewrap.stores.cosmos.documents import (
    NOWHERE,
    ODD,
    Change,
    can_patch,
    changed,
    changes_of,
    differing,
    merged,
    pointer,
    same_json,
    text_of,
    value_of,
)

NAMES = ["body", "ct", "iv", "tag", "kid", "meta", "cards", "a/b", "c~d", "0", "ü", 'q"t', "e f"]

WORDS = st.text(alphabet='abcé+/=:{}"\\ v12', max_size=12)

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | WORDS

JSONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)

DOCUMENTS = st.dictionaries(st.sampled_from(NAMES), JSONS, max_size=6).map(lambda found: {"id": "1", **found})


def part(role: Role, column: str, *path: str | int | None) -> Location:
    return Location(role, column, "json", "json", path)


def field(*parts: Location) -> FieldColumn:
    return FieldColumn("f", "json", True, parts)


FIELDS = {
    "property": field(part(Role.PAYLOAD, "body")),
    "path": field(part(Role.PAYLOAD, "body", "ct")),
    "element": field(part(Role.PAYLOAD, "cards", 1, "ct")),
    "odd names": field(part(Role.VERSION, "a/b", "c~d"), part(Role.PAYLOAD, "a/b", "e f")),
    "parts": field(
        part(Role.VERSION, "body", "kid"),
        part(Role.NONCE, "body", "iv"),
        part(Role.TAG, "body", "tag"),
        part(Role.PAYLOAD, "body", "ct"),
    ),
    "apart": field(part(Role.VERSION, "kid"), part(Role.PAYLOAD, "ct")),
    "version elsewhere": field(part(Role.VERSION, "meta", "kid"), part(Role.PAYLOAD, "body", "ct")),
    "elements": field(
        part(Role.VERSION, "cards", None, "kid"), part(Role.PAYLOAD, "cards", None, "ct"),
    ),
    "bare elements": field(part(Role.PAYLOAD, "cards", None)),
    "nested elements": field(part(Role.PAYLOAD, "body", "cards", None, "meta", "ct")),
}  # fmt: skip


def paths_of(column: FieldColumn, document: Any) -> list[Path]:
    """Every place that a field may be written to, arrays' places resolved."""
    found: list[Path] = []
    for one in column.parts:
        if None not in one.path:
            found.append((one.column, *one.path))
            continue
        found += [
            (one.column, *(at if step is None else step for step in one.path)) for at in range(len(NAMES))
        ]
    return found


def new_text(column: FieldColumn, old: str, fresh: str) -> str:
    """Another value of as many parts and elements as there are."""
    one = PART.join([f"v9{fresh}", *(f"{fresh}{at}" for at in range(len(column.parts) - 1))])
    return ELEMENT.join([one] * (old.count(ELEMENT) + 1)) if column.many else one


@pytest.mark.parametrize("kind", FIELDS)
@given(document=DOCUMENTS, fresh=st.text(alphabet="xyz=", min_size=1, max_size=5))
def test_what_is_written_is_read_and_nothing_else_changes(
    kind: str, document: dict[str, Any], fresh: str
) -> None:
    """read(write(document, new)) == new, and the rest is what it was, to the byte."""
    column = FIELDS[kind]
    before = copy.deepcopy(document)
    old = value_of(document, column)
    if old is None:
        return
    new = new_text(column, old, fresh)
    try:
        changes = merged(changes_of(document, column, new))
    except ValueRefused:
        # there is no object for a part: a reseal of such a value is never asked for, or is put aside
        assert NOWHERE in old or ODD in old or kind == "element"
        assert document == before
        return
    after = changed(document, changes)
    assert value_of(after, column) == new
    assert same_json(document, before)
    allowed = paths_of(column, document)
    for path in differing(document, after):
        assert any(path == one[: len(path)] for one in allowed), path
        # what is replaced above a field's own place was the field's value itself
        if path not in allowed:
            assert any(isinstance(change.value, dict | str) and change.path == path for change in changes)
    assert all(json.dumps(after[name]) == json.dumps(before[name]) for name in before
               if not any(change.path[0] == name for change in changes))  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
@given(document=DOCUMENTS)
def test_writing_what_is_there_writes_nothing(kind: str, document: dict[str, Any]) -> None:
    """A value that already is the new one needs no request."""
    column = FIELDS[kind]
    old = value_of(document, column)
    assert old is None or changes_of(document, column, old) == []


@given(path=st.lists(st.sampled_from(NAMES) | st.text(max_size=6), min_size=1, max_size=4))
def test_a_pointer_leads_back_to_its_path(path: list[str]) -> None:
    """RFC 6901: split at slashes, then ~1 is a slash and ~0 a tilde."""
    text = pointer(tuple(path))
    steps = [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]
    assert steps == path


def test_names_that_read_as_places_are_not_patched() -> None:
    """A pointer cannot say whether 0 is a name or a place; a server that guesses may write elsewhere."""
    assert can_patch(("cards", 0, "ct"))
    assert can_patch(("a/b", "c~d"))
    assert not can_patch(("cards", "0"))
    assert not can_patch(("cards", "-"))
    assert not can_patch(("cards", ""))


@given(one=JSONS, other=JSONS)
def test_documents_differ_where_their_json_differs(one: Any, other: Any) -> None:
    """No place is named for equal JSON, and some place for any other."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (differing({"a": one}, {"a": other}) == []) == same


def read(column: FieldColumn, document: dict[str, Any]) -> str | None:
    return value_of({"id": "1", **document}, column)


def test_parts_are_joined_in_their_order() -> None:
    """Version, nonce, tag, payload; what is missing is the empty text, and what is no text is odd."""
    body = {"kid": "v1", "iv": "nn", "tag": "tt", "ct": "cc"}
    assert read(FIELDS["parts"], {"body": body}) == PART.join(["v1", "nn", "tt", "cc"])
    assert read(FIELDS["parts"], {"body": {"ct": "cc"}}) == PART.join(["", "", "", "cc"])
    assert read(FIELDS["parts"], {"body": {**body, "kid": None}}) == PART.join(["", "nn", "tt", "cc"])
    assert read(FIELDS["parts"], {"body": {**body, "ct": {"x": 1}}}) == PART.join(
        ["v1", "nn", "tt", ODD + '{"x":1}']
    )


@pytest.mark.parametrize("version", [5, 5.5, True, None, {"a": 1}, ["v1"]])
def test_a_version_that_is_no_text_is_missing(version: Any) -> None:
    """It is not compared, and stays as it is until the value is written."""
    document = {"id": "1", "kid": version, "ct": "cc"}
    assert value_of(document, FIELDS["apart"]) == f"{PART}cc"
    after = changed(document, changes_of(document, FIELDS["apart"], f"{PART}dd"))
    assert after == {**document, "ct": "dd"}
    assert value_of(after, FIELDS["apart"]) == f"{PART}dd"


def test_a_missing_version_is_written() -> None:
    """A value that named no version gets one."""
    document = {"id": "1", "ct": "cc"}
    changes = changes_of(document, FIELDS["apart"], f"v2{PART}dd")
    assert changes == [Change(("kid",), "v2"), Change(("ct",), "dd")]


@pytest.mark.parametrize("meta", [{}, {"meta": None}, {"meta": "text"}, {"meta": [1]}])
def test_a_version_without_a_place_is_never_written(meta: dict[str, Any]) -> None:
    """There is no object to write it to, and none is made in place of what is there."""
    document = {"id": "1", "body": {"ct": "cc"}, **meta}
    column = FIELDS["version elsewhere"]
    assert value_of(document, column) == f"{NOWHERE}{PART}cc"
    with pytest.raises(ValueRefused):
        changes_of(document, column, f"v2{PART}dd")


def test_a_text_in_place_of_the_object_is_the_value() -> None:
    """What was never sealed is read as plaintext; sealed, it becomes the object with all its parts."""
    document = {"id": "1", "body": "in clear", "other": 1}
    column = FIELDS["parts"]
    assert value_of(document, column) == PART.join(["", "", "", "in clear"])
    new = PART.join(["v2", "nn", "tt", "cc"])
    changes = changes_of(document, column, new)
    assert changes == [Change(("body",), {"kid": "v2", "iv": "nn", "tag": "tt", "ct": "cc"})]
    assert value_of(changed(document, changes), column) == new


def test_elements_without_a_value_are_left_out_and_left_alone() -> None:
    """Places are counted over all elements, values only over those that have one."""
    document = {"id": "1", "cards": [{"kid": "v1", "ct": "a"}, {"ct": None}, 7, {"kid": "v1", "ct": "b"}]}
    column = FIELDS["elements"]
    old = value_of(document, column)
    # a number in an element's place is odd, and is told
    assert old == ELEMENT.join([f"v1{PART}a", f"{NOWHERE}{PART}{ODD}7", f"v1{PART}b"])
    parts = old.split(ELEMENT)
    parts[2] = f"v2{PART}c"
    changes = changes_of(document, column, ELEMENT.join(parts))
    assert changes == [Change(("cards", 3, "kid"), "v2"), Change(("cards", 3, "ct"), "c")]


def test_another_array_on_the_way_is_not_taken_for_the_one_meant() -> None:
    """Its elements are no values, and are not written."""
    document = {"id": "1", "body": [{"meta": {"ct": "a"}}]}
    assert value_of(document, FIELDS["nested elements"]) is None


def test_another_number_of_elements_is_never_written() -> None:
    """Then a value would land in another element."""
    document = {"id": "1", "cards": [{"ct": "a"}, {"ct": "b"}]}
    with pytest.raises(ResealMismatch):
        changes_of(document, FIELDS["elements"], f"v2{PART}x")
    with pytest.raises(ResealMismatch):
        changes_of(document, FIELDS["apart"], "no parts")


def test_two_fields_share_one_place_or_have_their_own() -> None:
    """A version that both write alike is written once; anything else that overlaps is refused."""
    shared = Change(("kid",), "v2")
    assert merged([shared, Change(("ct",), "a"), Change(("kid",), "v2")]) == [shared, Change(("ct",), "a")]
    with pytest.raises(ValueRefused):
        merged([shared, Change(("kid",), "v3")])
    with pytest.raises(ValueRefused):
        merged([Change(("body",), {"ct": "x"}), Change(("body", "iv"), "n")])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ("", ""),
        (None, None),
        (7, "7"),
        (7.0, "7"),
        (0.5, "0.5"),
        (True, "true"),
        ({"b": [1]}, '{"b":[1]}'),
    ],
)
def test_associated_data_are_texts(value: Any, text: str | None) -> None:
    """Strings as they are, numbers as JavaScript writes them, the rest as JSON."""
    assert text_of({"id": "1", "owner": {"id": value}}, ("owner", "id")) == text
    assert text_of({"id": "1"}, ("owner", "id")) is None
    assert text_of({"id": "1"}, ("id",)) == "1"
