"""Pure: a field's value in a document, and the changes of the document that make it another value.

A value that is stored in parts is read as one text and taken apart again when it is written, as in every
store: `version ␞ nonce ␞ tag ␞ payload ␞ index`, U+001E between them; the elements of an array that have a
value are one text, U+001D between them.

    {"id": "7", "body": {"ct": "…", "iv": "…", "kid": "v1"}}      body.ct, body.iv, body.kid → "v1␞…␞…"

- A version that is missing, null or no string is the empty text, and gets written. Where there is no object
  to write it to, `(no place for it)` stands for it.
- Another part that is missing or null is the empty text. A payload that is missing or null is no value.
- What is no string is U+0002 and its JSON: it is no sealed value, though its text might look like one.
- A string where the object with the parts should be is the payload itself, from before it was sealed; all
  parts are then written as one object in its place.

Changes name single places: whatever else the document holds stays as the server has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewrap.errors import ResealMismatch, ValueRefused
from rewrap.model import FieldColumn, Location, Role
from rewrap.packed import ELEMENT, PART, SEPARATOR

Steps = tuple[str | int, ...]

ODD = "\x02"
"""Stands before what cannot be a value: no layout has it in a marker or in a payload."""

NOWHERE = "(no place for it)"
"""Stands for the version of a value in a document that has no object to write a version to."""

_NO_ELEMENT = str.maketrans({ELEMENT: ODD, SEPARATOR: ODD})


class _Missing:
    """Stands for what a document does not have; None is what it has as null."""


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Change:
    """One place of a document, from its root, and what it is to hold."""

    path: Steps
    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is at the end of a path: a value, MISSING, or what stood in the way, and after how many steps."""

    value: Any
    blocked_at: int | None = None


def value_of(document: Mapping[str, Any], column: FieldColumn) -> str | None:
    """A field's value in a document, as one text; None when it has none."""
    if not column.many:
        return _joined(document, column.parts)
    texts = [_joined(element, parts) for _, element, parts in _elements(document, column)]
    values = [text.translate(_NO_ELEMENT) for text in texts if text is not None]
    return ELEMENT.join(values) if values else None


def text_of(document: Mapping[str, Any], steps: Sequence[str | int]) -> str | None:
    """The text of a value that feeds associated data: a string as it is, anything else as its JSON.

    Numbers are written as JavaScript writes them: whole ones without a fraction. None for null and for what
    is not there.
    """
    value = _follow(document, steps).value
    if value is MISSING or value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return _json(value)


def changes_of(document: Mapping[str, Any], column: FieldColumn, new: str) -> list[Change]:
    """What to write so that a field has a new value. Nothing else of the document is named.

    Raises ValueRefused where the document has no place for a part, ResealMismatch when the new value does
    not come apart into the parts or elements that the document has.
    """
    if not column.many:
        return _changes(document, (), column.parts, new)
    present = [
        (steps, element, parts, old)
        for steps, element, parts in _elements(document, column)
        if (old := _joined(element, parts)) is not None
    ]
    news = new.split(ELEMENT)
    if len(news) != len(present):
        raise _slipped()
    changes: list[Change] = []
    for (steps, element, parts, old), text in zip(present, news, strict=True):
        if text != old.translate(_NO_ELEMENT):
            changes += _changes(element, steps, parts, text)
    return changes


def merged(changes: Sequence[Change]) -> list[Change]:
    """The changes of several fields as one list, a shared place once.

    Raises ValueRefused when two of them would write different things to one place, or one within the other.
    """
    kept: dict[Steps, Change] = {}
    for change in changes:
        same = kept.get(change.path)
        if same is not None and not same_json(same.value, change.value):
            raise _clash(change.path)
        kept[change.path] = change
    paths = sorted(kept, key=lambda path: [str(step) for step in path])
    for path in paths:
        if any(path[:depth] in kept for depth in range(1, len(path))):
            raise _clash(path)
    return list(kept.values())


def changed(document: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """A copy of a document with changes made; what they do not name is the very same objects."""
    out: dict[str, Any] = dict(document)
    for change in changes:
        holder: Any = out
        for step in change.path[:-1]:
            inner = holder[step]
            holder[step] = holder = dict(inner) if isinstance(inner, dict) else list(inner)
        holder[change.path[-1]] = change.value
    return out


def differing(before: Any, after: Any, at: Steps = ()) -> list[Steps]:
    """The places in which two documents differ: none above, and none below, another of them."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [
            path
            for name in names
            for path in differing(before.get(name, MISSING), after.get(name, MISSING), (*at, name))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            path
            for place, (one, other) in enumerate(zip(before, after, strict=True))
            for path in differing(one, other, (*at, place))
        ]
    return [] if same_json(before, after) else [at]


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: unlike Python, 1 is neither true nor 1.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return type(one) is type(other) and bool(one == other)


def pointer(path: Steps) -> str:
    """A path as a JSON pointer (RFC 6901): `~` and `/` in a name are written `~0` and `~1`."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def can_patch(path: Steps) -> bool:
    """Whether a patch can name a path: not with an empty name, nor one that reads as an array's place.

    An object's key `0` or `-` looks in a pointer like an element's place, and what a server then does is not
    said anywhere. Such a document is replaced as a whole.
    """
    return all(isinstance(step, int) or (step != "" and step != "-" and not step.isdigit()) for step in path)


def part_steps(part: Location) -> Steps:
    """The steps from a document's root to a part that is not in an array's elements."""
    return (part.column, *(step for step in part.path if step is not None))


def _elements(
    document: Mapping[str, Any], column: FieldColumn
) -> list[tuple[Steps, Any, tuple[Location, ...]]]:
    """The elements of a field's array: the steps to each, the element, and its parts as paths within it."""
    first = column.parts[0]
    depth = first.path.index(None)
    to_array: Steps = (first.column, *(step for step in first.path[:depth] if step is not None))
    found = _follow(document, to_array)
    array = found.value
    # another array may stand where an object on the way to this one should be
    if found.blocked_at is not None or not isinstance(array, list):
        return []
    parts = tuple(
        Location(part.role, "", part.type_name, part.base, part.path[depth + 1 :]) for part in column.parts
    )
    return [((*to_array, place), element, parts) for place, element in enumerate(array)]


def _within(part: Location) -> Steps:
    """A part's steps from where it is looked for: a document's root, or an element."""
    return part_steps(part) if part.column else tuple(step for step in part.path if step is not None)


def _follow(root: Any, steps: Sequence[str | int]) -> _Found:
    value = root
    for at, step in enumerate(steps):
        if isinstance(step, int) and isinstance(value, list):
            value = value[step] if 0 <= step < len(value) else MISSING
        elif isinstance(step, str) and isinstance(value, Mapping):
            value = value.get(step, MISSING)
        elif value is not None:
            return _Found(value, at)
        if value is MISSING or value is None:
            # null ends a path only where it is the last of it
            return _Found(value if at + 1 == len(steps) else MISSING)
    return _Found(value)


def _joined(root: Any, parts: Sequence[Location]) -> str | None:
    payload = _follow(root, _within(next(part for part in parts if part.role is Role.PAYLOAD)))
    if payload.value is MISSING or payload.value is None:
        return None
    whole = _text(payload.value)
    if len(parts) == 1:
        return whole
    beneath = _blocked_prefix(parts, payload)
    return PART.join(
        whole if part.role is Role.PAYLOAD else _part_text(root, part, beneath) for part in parts
    )


def _blocked_prefix(parts: Sequence[Location], payload: _Found) -> Steps | None:
    """The steps to the text that stands where the object with the payload should be; None where it does not.

    Only a string is replaced by an object: what else stands in the way is no value of ours.
    """
    if payload.blocked_at is None or not isinstance(payload.value, str):
        return None
    return _within(next(part for part in parts if part.role is Role.PAYLOAD))[: payload.blocked_at]


def _part_text(root: Any, part: Location, beneath: Steps | None) -> str:
    steps = _within(part)
    if beneath is not None and steps[: len(beneath)] == beneath:
        return ""
    found = _follow(root, steps)
    absent = found.blocked_at is not None or found.value is MISSING or found.value is None
    if part.role is Role.VERSION:
        if not absent and isinstance(found.value, str):
            return found.value
        return "" if _can_hold(root, steps) else NOWHERE
    return "" if absent else _text(found.value)


def _can_hold(root: Any, steps: Steps) -> bool:
    """Whether something can be set at the end of a path: its object is there, or its place in an array."""
    if not steps:
        return False
    *above, last = steps
    parent = _follow(root, above)
    if parent.blocked_at is not None:
        return False
    if isinstance(last, int):
        return isinstance(parent.value, list) and 0 <= last < len(parent.value)
    return isinstance(parent.value, Mapping)


def _changes(root: Any, at: Steps, parts: Sequence[Location], new: str) -> list[Change]:
    """What to write within `root`, which is found at `at`."""
    if new == _joined(root, parts):
        return []
    texts = new.split(PART) if len(parts) > 1 else [new]
    if len(texts) != len(parts):
        raise _slipped()
    payload = _follow(root, _within(next(part for part in parts if part.role is Role.PAYLOAD)))
    beneath, whole = _blocked_prefix(parts, payload), _text(payload.value)
    changes: list[Change] = []
    made: dict[str, Any] = {}
    for part, text in zip(parts, texts, strict=True):
        steps = _within(part)
        if beneath is not None and steps[: len(beneath)] == beneath:
            _put(made, steps[len(beneath) :], text)
        elif text == (whole if part.role is Role.PAYLOAD else _part_text(root, part, beneath)):
            # as it reads now, and so as it stays, be it missing or a number
            continue
        elif not steps:
            changes.append(Change(at, text))
        elif not _can_hold(root, steps):
            raise ValueRefused(
                f"a document has no object to write {part.role} to",
                hint="the place that targets.fields names for it has to be an object",
            )
        else:
            changes.append(Change((*at, *steps), text))
    if beneath is not None:
        changes.append(Change((*at, *beneath), made))
    return changes


def _put(made: dict[str, Any], steps: Steps, text: str) -> None:
    holder = made
    for step in steps[:-1]:
        holder = holder.setdefault(str(step), {})
    if isinstance(steps[-1], int) or any(isinstance(step, int) for step in steps):
        raise ValueRefused(
            "a text stands where an array with the value should be",
            hint="have the application write such documents anew",
        )
    holder[steps[-1]] = text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ODD + _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _slipped() -> ResealMismatch:
    return ResealMismatch(
        "a new value does not come apart into its parts again; nothing was written",
        hint="this is a defect in rewrap, please report it",
    )


def _clash(path: Steps) -> ValueRefused:
    return ValueRefused(
        f"two fields of a document have the same place, of {len(path)} steps",
        hint="a text stands where an object with both should be; have the application write it anew",
    )
