"""Tries layouts and keys on sampled values: what opens is known, not guessed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from rewrap.crypto.aad import Aad, AadTemplate
from rewrap.crypto.aead import AesGcm
from rewrap.crypto.ciphers import CIPHERS
from rewrap.crypto.layout import (
    BoundLayout,
    Layout,
    Malformed,
    Unopenable,
    Value,
    builtin_layouts,
    compiled,
)
from rewrap.discover import Made, Opened, Place, candidates_for_aad
from rewrap.draft import descriptor, field_of, key_of, quoted, scalar
from rewrap.errors import RewrapError
from rewrap.interfaces import Row
from rewrap.job import Job
from rewrap.keys.keyring import Key, Keyring
from rewrap.model import Table
from rewrap.packed import ELEMENT
from rewrap.pieces import orders
from rewrap.recognise import Likeness, Sampled

TRIED_FIRST, TRIED = 4, 20
"""Values that a layout is tried on, and on how many once one of them has opened."""

Fetch = Callable[[Job], Awaitable[tuple[Table, list[Row]]]]
"""The first table of a job, and some rows of it with a value; raises what a run would refuse it for."""

_SEALING = (
    "aes-256-gcm",
    "secretbox",
    "xchacha20-poly1305",
    "chacha20-poly1305",
    "aes-128-gcm",
    "aes-192-gcm",
    "aes-key-wrap",
    "aes-key-wrap-pad",
)

_ORDERS = (
    "",
    "nonce tag ciphertext",
    "nonce ciphertext tag",
    "tag nonce ciphertext",
    "ciphertext nonce tag",
    "ciphertext tag nonce",
    "tag ciphertext nonce",
)
"""Orders of one text: the cipher's own, then others."""

_NONCES = (0, 16)
"""Lengths of GCM's nonces: the usual one, and the one of programs that take it for a block."""

_FAMILIES = {"cloak": "elixir-cloak", "paseto-local": "paseto"}
"""What built-in layouts call a family, where they call it something else."""


_UNFIT = (ValueError, TypeError, OverflowError)
"""What libraries raise for a key of another length, or a value of another kind."""

Tried = tuple[Value, dict[str, str | None]]
"""A value, and the texts of its row that it may be bound to."""


async def try_layouts(place: Place, job: Job | None, keyring: Keyring, fetch: Fetch) -> None:
    """Fills in what opens a place's values, what fits them, and whether a run would take the table."""
    place.fits = sorted(_fitting(place))
    probe = _probe_job(place)
    if probe is None:
        return
    try:
        table, rows = await fetch(probe)
    except RewrapError as exc:
        place.refused = f"{exc.message}; {exc.hint}" if exc.hint else exc.message
        return
    place.tried = bool(rows) and any(True for _ in keyring)
    named = dict(builtin_layouts())
    if job is not None:
        named |= {name: job.layout(name) for name in job.layouts}
    tried = [*((name, layout, None) for name, layout in named.items()), *_made(place)]
    entry = probe.targets[0].fields[0]
    for name, layout, made in tried:
        try:
            joined = layout.joined(entry.apart, entry.version.form if entry.version else None)
        except ValueError:
            continue
        for key in keyring:
            opened = _opened(name, joined, key, place, table, rows)
            place.opens += [replace(one, made=made) for one in opened]
    # first what opens most; a layout with a name before one that was made up
    place.opens.sort(key=lambda one: (-one.opened, one.made is not None))
    if place.opens:
        # as long as a hash, and yet it opens
        best_one = place.opens[0]
        look = replace(place.look, likeness=Likeness.CIPHERTEXT)
        if place.look.likeness is Likeness.NOTHING:
            share = best_one.opened / max(1, best_one.tried)
            look = replace(look, family="no known form", share=share)
        place.look = look
    best = {one.version: one for one in reversed(place.opens)}
    place.opens = [one for one in place.opens if best[one.version] is one]


def worth_trying(place: Place, job: Job) -> bool:
    """Whether a layout of the job, or a built-in one, can read what looks like nothing of ours."""
    layouts = {**builtin_layouts(), **{name: job.layout(name) for name in job.layouts}}
    return place.in_job or any(
        _reads(layout, value) for layout in layouts.values() for value in place.values[:TRIED_FIRST]
    )


def _reads(layout: Layout, value: Sampled) -> bool:
    if layout.plaintext or layout.binary != isinstance(value, bytes):
        return False
    version = layout.version_of(value)
    if layout.versioned and version is None:
        return False
    try:
        bare = replace(layout, kdf=None).bind(version or "", bytes(layout.cipher.key_bytes or 32))
    except ValueError:
        return False
    return _parses(bare, value)


def _fitting(place: Place) -> Iterable[str]:
    """Built-in layouts that a place's values could be in, by their looks."""
    look = place.look
    family = _FAMILIES.get(look.family, look.family)
    sample = place.values[:TRIED]
    for name, layout in builtin_layouts().items():
        if layout.binary != any(isinstance(value, bytes) for value in sample):
            continue
        if look.family in ("marker", "bare", "pieces"):
            if layout.versioned and sample and all(layout.version_of(value) for value in sample):
                yield name
        elif name == family or (name.startswith(f"{family}-") and family != "laravel"):
            yield name


def _made(place: Place) -> Iterable[tuple[str, Layout, Made]]:
    """Layouts made from a place's looks, with each cipher and each order that it could be."""
    look = place.look
    if look.encoding is None:
        return
    sizes = _NONCES if not look.separator else (0, *(span[0] for span in look.spans if span[0] == span[1]))
    named = [*orders(look.spans)] if look.separator else [*_ORDERS]
    seen: set[tuple[object, ...]] = set()
    # what values begin with may name no version at all
    for constant in (False, True) if look.head and look.versions and not place.parts else (False,):
        for cipher in _SEALING:
            for order in named:
                for size in sizes if isinstance(CIPHERS.get(cipher), AesGcm) else (0,):
                    made = Made(cipher, order, 0 if size == 12 or not 8 <= size <= 64 else size, constant)
                    try:
                        layout = compiled("made", descriptor(place, made))
                    except ValueError:
                        continue
                    order_of = layout.order or " ".join(layout.cipher.order)
                    what = (cipher, order_of, made.nonce_bytes, constant)
                    if what not in seen:
                        seen.add(what)
                        yield f"={cipher}", layout, made


def _probe_job(place: Place) -> Job | None:
    """A job over this place alone, whose reading takes parts and associated data along."""
    sealed = {place.column.name: None, **{name.partition(".")[0]: None for name in place.parts.values()}}
    bound = candidates_for_aad(place, sealed)
    told = descriptor(
        place, aad="".join(f"{{{name}}}" for name in bound if "{" not in name and "}" not in name)
    )
    if isinstance(place.values[0] if place.values else None, bytes):
        told["encoding"] = "raw"
    layout = "\n".join(
        f"{name} = {scalar(value)}" for name, value in told.items() if value or name == "marker"
    )
    text = (
        'name = "discover"\n[stores.main]\nkind = "postgres"\nurl = "${REWRAP_DISCOVER}"\n'
        f'[keys.versions.v1]\nmaterial = "env:NONE"\n[layouts.probe]\n{layout}\n'
        f"[[targets]]\ntable = {quoted(place.table.name)}\n{key_of(place)}fields = "
        f"[{field_of(place, 'probe')}]\n"
    )
    try:
        return Job.parse(text, environ={"REWRAP_DISCOVER": "postgresql://"})
    except RewrapError as exc:
        place.refused = exc.message.partition(": ")[2] or exc.message
        return None


def _opened(
    name: str, layout: Layout, key: Key, place: Place, table: Table, rows: Sequence[Row]
) -> Iterable[Opened]:
    """What one layout opens with one key: without associated data, or with those of one column."""
    if layout.plaintext:
        # without a tag a wrong key "opens" too: that proves nothing
        return
    values = [one for one in _values(layout, table, rows) if layout.version_of(one[0]) in (key.version, None)]
    bound = _bound(layout, key, place, values)
    if bound is None:
        return
    templates: list[Aad | None] = [None]
    if layout.aad is not None:
        templates = [layout.aad] if set(layout.aad.columns) <= set(table.aad_columns) else []
    elif layout.cipher.binds_aad:
        templates += [AadTemplate.parse(f"{{{column}}}") for column in table.aad_columns]
    for template in templates:
        if _count(bound, template, values[:TRIED_FIRST]):
            shown = template.text if template is not None and layout.aad is None else None
            tried = values[:TRIED]
            yield Opened(name, key.version, shown, _count(bound, template, tried), len(tried))
            break


def _values(layout: Layout, table: Table, rows: Sequence[Row]) -> list[Tried]:
    """The values of some rows, those of array elements each, with the texts that they may be bound to."""
    found: list[Tried] = []
    for row in rows:
        texts = dict(zip(table.aad_columns, row[1 + len(table.fields) :], strict=True))
        value = row[1]
        if isinstance(value, bytes if layout.binary else str):
            each = value.split(ELEMENT) if isinstance(value, str) and table.fields[0].many else [value]
            found += [(one, texts) for one in each]
    return found


def _bound(layout: Layout, key: Key, place: Place, values: Sequence[Tried]) -> BoundLayout | None:
    """The layout with a key; None where no value is in it, or the key does not fit it."""
    try:
        if layout.kdf is not None:
            # deriving a key may be slow: first see whether anything is in this format at all
            bare = replace(layout, kdf=None).bind(key.version, bytes(layout.cipher.key_bytes or 32))
            if not any(_parses(bare, value) for value, _ in values[:TRIED_FIRST]):
                return None
        return layout.bind(key.version, key.secret, place.table.name, place.name)
    except ValueError:
        return None


def _parses(bound: BoundLayout, value: Value) -> bool:
    try:
        bound.open_one(value, None)
    except Unopenable:
        return True
    except (Malformed, *_UNFIT):
        return False
    return True


def _count(bound: BoundLayout, template: Aad | None, values: Sequence[Tried]) -> int:
    return sum(
        _opens(bound, value, None if template is None else template.render(texts)) for value, texts in values
    )


def _opens(bound: BoundLayout, value: Value, aad: bytes | None) -> bool:
    try:
        bound.open_one(value, aad)
    except (Malformed, Unopenable, *_UNFIT):
        return False
    return True
