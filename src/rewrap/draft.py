"""Job files written for review: TOML with a comment at everything that a person should look at."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rewrap.discover import Made, Opened, Place
from rewrap.pieces import nonce_bytes, orders
from rewrap.recognise import Likeness

STORE = """[stores.main]
kind = "postgres"
url = "${DATABASE_URL}"     # of the primary itself: not of a standby, not of a pooler
"""

UNKNOWN_CIPHER = "aes-256-gcm"


def quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def scalar(value: str | int) -> str:
    """A value in TOML."""
    return quoted(value) if isinstance(value, str) else str(value)


def one_line(text: str) -> str:
    """A text that cannot end the comment it stands in."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)


def commented(text: str) -> str:
    """A text as comment lines of a file that people read."""
    return textwrap.fill(
        one_line(text), 108, initial_indent="# ", subsequent_indent="#   ", break_long_words=False
    )


def version_pattern(versions: Sequence[str]) -> str:
    """A pattern for versions like these."""
    for pattern in ("v[0-9]+", "[0-9]+", "k[0-9]+", "[0-9a-f]+"):
        if versions and all(re.fullmatch(pattern, version) for version in versions):
            return pattern
    return "[A-Za-z0-9]+" if versions else "v[0-9]+"


@dataclass(frozen=True)
class LayoutDraft:
    """A layout of a draft: its fields, and what is not known about it."""

    name: str
    fields: Mapping[str, str | int]
    doubt: str = ""

    def toml(self) -> str:
        lines = [f"[layouts.{self.name}]"]
        lines += [f"{name} = {scalar(value)}" for name, value in self.fields.items()]
        if self.doubt:
            lines.insert(0, f"# {self.doubt}")
        return "\n".join(lines)


Fields = dict[str, str | int]
"""The fields of a layout."""


def descriptor(place: Place, made: Made | None = None, aad: str | None = None) -> Fields:
    """The fields of a layout for what a place's values look like."""
    look = place.look
    made = made or next(iter(guesses(place)), Made(UNKNOWN_CIPHER))
    # what stands beside the value takes the marker's place
    marker = "" if "version" in place.parts and look.named else look.marker or ""
    found: Fields = {"marker": look.head if made.constant else marker}
    if not made.constant:
        found["version"] = version_pattern(list(look.versions))
    found |= {"encoding": look.encoding or "base64", "cipher": made.cipher}
    if made.order:
        found["order"] = made.order
    if look.separator:
        found["separator"] = look.separator
    if made.nonce_bytes:
        found["nonce_bytes"] = made.nonce_bytes
    if aad:
        found["aad"] = aad
    return found


def guesses(place: Place) -> Iterator[Made]:
    """What a place's values could be made with, by their looks, the commonest first."""
    look = place.look
    if not look.separator:
        yield Made(UNKNOWN_CIPHER)
        return
    for order in orders(look.spans):
        size = nonce_bytes(order, look.spans)
        if size == 24:
            yield Made("xchacha20-poly1305", order)
        else:
            yield Made(UNKNOWN_CIPHER, order, 0 if size == 12 else size)


def field_of(place: Place, layout: str) -> str:
    """A field of a target, as an inline table."""
    told = [f"column = {quoted(place.column.name)}"]
    if place.path is not None:
        told.append(f"path = {quoted(place.path)}")
    told.append(f"layout = {quoted(layout)}")
    for role, name in place.parts.items():
        told.append(f"{role} = {_part(place, name, place.form if role == 'version' else None)}")
    return f"{{ {', '.join(told)} }}"


def _part(place: Place, name: str, form: str | None = None) -> str:
    """Where a part of a place's values is, as an inline table."""
    column, path = name, None
    if place.path is not None and name.startswith(place.column.name + "."):
        column, path = place.column.name, name.removeprefix(place.column.name + ".")
    part = [f"column = {quoted(column)}"]
    if path is not None:
        part.append(f"path = {quoted(path)}")
    if form:
        part.append(f"form = {quoted(form)}")
    return f"{{ {', '.join(part)} }}"


def key_of(place: Place) -> str:
    """The `key` of a target, where it is not the default."""
    key = place.table.key
    if not key or key == ("id",):
        return ""
    names = ", ".join(quoted(name) for name in key)
    return f"key = {names if len(key) == 1 else f'[{names}]'}\n"


@dataclass(frozen=True)
class KeyKind:
    """Keys of one program: how they are written, how a new one is made, what a person should know."""

    encoding: str
    command: str
    said: str


_KINDS = {
    "fernet": KeyKind(
        "base64",
        "Fernet.generate_key()",
        'These are Fernet tokens: their keys are base64, encoding = "base64".',
    ),
    "laravel": KeyKind(
        "base64",
        "php artisan key:generate --show",
        'These are Laravel\'s: the key is APP_KEY, with or without its "base64:", encoding = "base64".',
    ),
    "rails": KeyKind(
        "utf8",
        "bin/rails db:encryption:init",
        "These are Rails': the secret is primary_key (for deterministic ones deterministic_key), encoding = "
        '"utf8", and the key is derived from it: declare a layout with like = "rails" and a kdf with the '
        "application's key_derivation_salt (docs/layouts.md).",
    ),
}
"""What is known of keys by the family of values."""


def kind_of_key(place: Place) -> str:
    """Whose key a place's values are under, by their looks; empty for any bytes, or a key that opens it."""
    family = {"sentry": "fernet", "laravel-gcm": "laravel"}.get(place.look.family, place.look.family)
    return family if family in _KINDS and not place.opens else ""


@dataclass
class Draft:
    """A job file in the making. `head` is its store and keys where an earlier job has them."""

    name: str
    places: Sequence[Place]
    job_layouts: frozenset[str] = frozenset()
    head: str | None = None
    layouts: dict[str, LayoutDraft] = field(default_factory=dict)

    def toml(self) -> str:
        """The whole file; it loads, and what could not be rotated as it is stands in comments."""
        groups = self._groups()
        active = next(iter(groups.values()), [])
        targets = self._targets(active)
        for kind, places in list(groups.items())[1:]:
            targets += self._another(kind, places)
        parts = [
            "# Written by rewrap discover from what stored values look like. Review all of it: "
            "discover sees\n"
            "# samples, and only the application's code knows every encrypted column. One that is "
            "missing here\n"
            "# is not rotated.\n",
            self.head
            if self.head is not None
            else f"name = {quoted(self.name)}\n\n{STORE}\n{self._keys(active)}",
            *(f"{draft.toml()}\n" for draft in self.layouts.values()),
            *targets,
        ]
        return "\n".join(parts)

    def _groups(self) -> dict[str, list[Place]]:
        """The places by the kind of key they are under: values of different kinds cannot share one.

        First the kind of the first place that could be a target.
        """
        groups: dict[str, list[Place]] = {}
        for place in self.places:
            groups.setdefault(kind_of_key(place), []).append(place)
        fit = [kind_of_key(place) for place in self.places if self._fits(place)]
        first = "" if "" in fit else next(iter(fit), next(iter(groups), ""))
        return {kind: groups[kind] for kind in dict.fromkeys([first, *groups]) if kind in groups}

    def _fits(self, place: Place) -> bool:
        # tried on a copy: a layout that nothing uses must not stand in the file
        names = Draft(self.name, [place], self.job_layouts)
        return not place.refused and names._layout_of(place) is not None

    def _another(self, kind: str, places: Sequence[Place]) -> list[str]:
        """The targets of a key that is not this job's, in comments."""
        apart = Draft(self.name, places, self.job_layouts)
        targets = apart._targets(places)
        layouts = [f"{draft.toml()}\n" for draft in apart.layouts.values()]
        written = "\n".join([*layouts, *targets])
        said = _KINDS[kind].said if kind in _KINDS else "Its values name no kind of key."
        head = commented(f"Another key: a job of its own. {said} What follows would stand in that file.")
        # what is a comment already stays one
        lines = [line if line.startswith("#") or not line else f"#   {line}" for line in written.splitlines()]
        return ["\n".join([head, *lines]) + "\n"]

    def _keys(self, places: Sequence[Place]) -> str:
        kind = _KINDS.get(kind_of_key(places[0])) if places else None
        versions = list(dict.fromkeys(v for place in places for v in place.look.versions)) or ["v1"]
        versions.sort(key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"([0-9]+)", name)])
        new = _next(versions[-1])
        lines = ["# Where each key is: env:NAME or file:PATH. A key itself never stands in this file."]
        lines += [commented(kind.said)] if kind else []
        command = "openssl rand -hex 32" if kind is None else kind.command
        for version in [*versions, *([new] if new not in versions else [])]:
            variable = re.sub(r"[^A-Za-z0-9]", "_", version).upper()
            made = "" if version in versions else f"     # the new one: {command}"
            lines += [
                f"[keys.versions.{version if re.fullmatch(r'[A-Za-z0-9_-]+', version) else quoted(version)}]",
                f'material = "env:KEY_{variable}"{made}',
                *([f'encoding = "{kind.encoding}"'] if kind else []),
                "",
            ]
        return "\n".join(lines)

    def _targets(self, places: Sequence[Place]) -> list[str]:
        by_table: dict[str, list[Place]] = {}
        for place in places:
            by_table.setdefault(place.table.name, []).append(place)
        live, quiet = [], []
        for table, mine in by_table.items():
            fit = [place for place in mine if not place.refused and self._layout_of(place) is not None]
            for place in mine:
                if place not in fit:
                    quiet.append(_commented(place))
            if fit:
                live.append(self._target(table, fit))
        if not live:
            live.append(
                "# No column could be made a target: a job needs at least one. See the reasons below, and\n"
                '# docs/layouts.md.\n# [[targets]]\n# table = "…"\n# fields = '
                '[{ column = "…", layout = "…" }]\n'
            )
        if quiet:
            quiet.insert(0, "# Left out; read why before you go on:\n")
        named = {version_pattern([v]): v for place in places for v in place.look.versions}
        if len(named) > 1:
            live.insert(
                0,
                commented(
                    f"Versions are named in more than one way here ({', '.join(named.values())}). A rotation "
                    "goes from one name to another in all its columns: make a job for each way."
                )
                + "\n",
            )
        return [*live, *quiet]

    def _target(self, table: str, places: Sequence[Place]) -> str:
        lines = [commented(f"{table}.{place.name}: {reason(place)}") for place in places]
        lines += [
            commented(f"{place.name} could also be {', '.join(place.fits)}: the application's code says")
            for place in places
            if len(place.fits) > 1 and not place.opens
        ]
        lines += [_decide(place) for place in places if place.undecided]
        fields = ",\n".join(f"  {field_of(place, self._layout_of(place) or '')}" for place in places)
        return (
            "\n".join(lines)
            + f"\n[[targets]]\ntable = {quoted(table)}\n{key_of(places[0])}fields = [\n{fields},\n]\n"
        )

    def _layout_of(self, place: Place) -> str | None:
        """The layout of a place: the one that opens it, one that fits, or one made from its looks."""
        if place.opens:
            best = place.opens[0]
            if best.made is not None:
                return self._made(place, descriptor(place, best.made, best.aad), "")
            if best.aad is None:
                return best.layout
            return self._made(place, {"like": best.layout, "aad": best.aad or ""}, "")
        if place.look.blocks and place.look.family == "pieces":
            return None
        telling = place.look.family not in ("marker", "bare", "pieces") or place.look.marker not in (
            None,
            _PLAIN,
        )
        if place.fits and telling:
            fitting = min(place.fits, key=len)
            return None if fitting in _KEPT_ELSEWHERE else fitting
        shaped = bool(place.look.marker or place.look.separator or "version" in place.parts)
        if place.look.family in ("marker", "bare", "pieces") and shaped:
            what = "the cipher and the order are guesses" if place.look.separator else "the cipher is a guess"
            doubt = f"{what}, and associated data are not known: the application's code says both"
            return self._made(place, descriptor(place), doubt)
        return None

    def _made(self, place: Place, fields: Mapping[str, str | int], doubt: str) -> str:
        for name, draft in self.layouts.items():
            if draft.fields == fields:
                return name
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{place.table.name}-{place.name}").strip("-") or "stored"
        taken = {*self.layouts, *self.job_layouts}
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        self.layouts[name] = LayoutDraft(name, fields, doubt)
        return name


_KEPT_ELSEWHERE = {
    "vault-transit": "a transit engine has sealed these: that takes a job of its own, with "
    'keys.provider = "vault-transit" (docs/keys-transit.md)',
}
"""Built-in layouts that no job with keys of its own can use, and what can."""

_PLAIN = "{version}:"
"""A marker that many formats have: it does not say which of them it is."""


def shown_layout(opened: Opened) -> str:
    """A layout that opened values, for people."""
    name = opened.layout if opened.made is None else opened.made.shown
    return f"{name} bound to {opened.aad}" if opened.aad else name


def reason(place: Place) -> str:
    """Why a place is in the draft."""
    look = place.look
    told = [f"{look.shown_share} of {look.sampled} sampled values are {described(place)}"]
    if look.versions:
        told.append(", ".join(f"{version} {n}" for version, n in sorted(look.versions.items())))
    for opened in place.opens[:3]:
        told.append(f"{shown_layout(opened)} opens {opened.opened} of {opened.tried} under {opened.version}")
    return "; ".join(told)


_DOUBTFUL = ("hash or random token", "short random text", "random token", "repeated random text")


def described(place: Place) -> str:
    """What a place's values look like, in a few words."""
    look = place.look
    if look.likeness is not Likeness.CIPHERTEXT:
        return look.family or "nothing that is known"
    words = look.family
    if look.family == "pieces":
        words = f"{look.marker or ''}{look.separator.join(['…'] * len(look.spans))} in {look.encoding}"
    elif look.family == "marker":
        payload = "bytes" if look.encoding == "raw" else look.encoding
        words = f"{look.marker or 'a head'} + {payload}"
    elif look.encoding is not None and look.family in ("bare", *_DOUBTFUL):
        words = {"raw": "random bytes", "hex": "random bytes in hex"}.get(
            look.encoding or "", f"random bytes in {look.encoding}"
        )
    beside = ", ".join(f"{role} in {name}" for role, name in place.parts.items())
    return f"{words} ({beside})" if beside else words


def _commented(place: Place) -> str:
    why = place.refused or "no layout is known that opens it: see docs/layouts.md for how to declare one"
    if place.look.blocks and place.look.family == "pieces" and not place.refused:
        why = (
            "an IV and whole blocks: this may be AES-CBC, which does not authenticate. Then declare it with "
            'cipher = "aes-256-cbc", an order, and what plaintexts look like (docs/layouts.md)'
        )
    kept = [_KEPT_ELSEWHERE[name] for name in place.fits if name in _KEPT_ELSEWHERE]
    why = kept[0] if kept and not (place.refused or place.opens) else why
    target = (
        f"[[targets]]\ntable = {quoted(place.table.name)}\n{key_of(place)}"
        f"fields = [{field_of(place, place.fits[0] if place.fits else '…')}]"
    )
    lines = [commented(f"{place.table.name}.{place.name}: {reason(place)}"), commented(why)]
    if place.undecided:
        lines.append(_decide(place))
    return "\n".join([*lines, *(f"#   {line}" for line in target.splitlines())]) + "\n"


def _decide(place: Place) -> str:
    """What a person has to say before a run: a version that stays behind makes values unreadable."""
    told = " or ".join(f"version = {_part(place, name)}" for name in place.undecided)
    if place.look.named:
        return commented(
            f"DECIDE, before you run: {place.name} has a marker, and {' or '.join(place.undecided)} may name "
            f"its key as well. If the application looks there, add to the field: {told}"
        )
    return commented(
        f"DECIDE, before you run: {' or '.join(place.undecided)} may name the key that {place.name} is "
        f"under. If it does, add to the field: {told}. Without it the application would look for the old key"
    )


def _next(version: str) -> str:
    found = re.fullmatch(r"(.*?)([0-9]+)", version)
    return f"{found.group(1)}{int(found.group(2)) + 1}" if found else f"{version}2"
