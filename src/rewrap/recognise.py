"""Pure: what a column's values look like: ciphertext and in which form, a hash, a token, or nothing of ours.

Nobody can tell ciphertext from random bytes. What can be told is that values have a form which applications
give to ciphertext, and not one that others have: the hashes, tokens, images and texts that databases are full
of. In doubt it says "hash or token", so that nothing is hidden.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from rewrap.pieces import Span, orders, salted, take_apart, whole_blocks

Sampled = str | bytes


class Likeness(StrEnum):
    CIPHERTEXT = "ciphertext"
    HASH = "hash"
    TOKEN = "token"  # noqa: S105  # a likeness, not a secret
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Form:
    """One value's form. `family` names it, `head` is the template of what stands before the payload."""

    likeness: Likeness
    family: str
    head: str = ""
    version: str | None = None
    encoding: str | None = None
    payload: bytes | None = field(default=None, repr=False)
    separator: str = ""
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What a column's values have in common.

    `marker` is the template of what they begin with, None where there is none. `versions` counts what stands
    in it. `share` is how many of the values have the form; `lengths` the least, middle and greatest length of
    a stored value; `decoded` those of the payload in bytes. `head` is what all values begin with, version
    included, if that is the same. Values of several pieces have a `separator` and for each piece its `spans`;
    `blocks` if they are an IV and whole blocks.
    """

    likeness: Likeness
    family: str = ""
    marker: str | None = None
    encoding: str | None = None
    versions: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    share: float = 0.0
    lengths: tuple[int, int, int] = (0, 0, 0)
    decoded: tuple[int, int, int] = (0, 0, 0)
    head: str = ""
    separator: str = ""
    spans: tuple[Span, ...] = ()
    blocks: bool = False

    @property
    def shown_share(self) -> str:
        """The share in percent, rounded down: one plaintext value among many is not rounded away."""
        return f"{int(self.share * 100 + 1e-9)}%"

    @property
    def named(self) -> bool:
        """Whether what values begin with seems to name a version."""
        return self.marker is not None and "{version}" in self.marker

    @property
    def fixed(self) -> int | None:
        """The length of every payload in bytes, if they are all alike."""
        return self.decoded[0] if self.decoded[0] == self.decoded[2] else None


NOTHING = Look(Likeness.NOTHING)

SEALED_BYTES_MIN = 28
"""The shortest payload that carries a nonce of 12 and a tag of 16 bytes."""

_HASH_BYTES = frozenset({16, 20, 28, 32, 48, 64})
"""Lengths of MD5, SHA-1 and SHA-2; random tokens have them too."""

_SHARE_MIN = 0.2
"""Share of a column's values that must have a form; below it, a few odd values gave the impression."""

_PASSWORD_HASH = re.compile(
    r"\$(?:2[abxy]|argon2\w*|pbkdf2[\w-]*|scrypt|s0|5|6|1|y|apr1)\$|(?:pbkdf2|bcrypt|argon2|scrypt)\w*\$|"
    r"\{(?:SSHA|SHA|SMD5|MD5|CRYPT|BCRYPT)[0-9]*\}|(?:sha|md)[0-9]{1,3}[:$]|SCRAM-SHA-256\$",
    re.IGNORECASE,
)

_UUID = re.compile(r"\{?[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\}?")

_HEX = re.compile(r"(?:\\x|0x)?((?:[0-9a-f]{2})+|(?:[0-9A-F]{2})+)")

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+={0,2}")

# parts of a head end in one of these; what follows the last is the payload
_HEADED = re.compile(r"((?:[A-Za-z0-9][A-Za-z0-9_-]{0,23}[:|$.,]){1,4})([A-Za-z0-9+/_=-]{16,})")

_VERSION_PART = re.compile(r"(?:key|k|ver|v)?[0-9]{1,10}|k[A-Za-z0-9]{1,12}", re.IGNORECASE)

_KNOWN_HEADS = (
    ("47ng-cloak", re.compile(r"v1\.aesgcm256\.([0-9a-f]{8})\.[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]{22,}={0,2}")),
    ("iron", re.compile(r"Fe26\.2\*([^*]*)\*[0-9a-f]+\*[\w-]+\*[\w-]+\*")),
    ("paseto-local", re.compile(r"v[1-4]\.local\.()[A-Za-z0-9_-]{60,}")),
    ("sentry", re.compile(r"enc:fernet:([^:]+):gAAAAA[A-Za-z0-9_-]{60,}={0,2}")),
    ("grafana", re.compile(r"#([A-Za-z0-9+/_=-]+)#.{16,}", re.DOTALL)),
    ("sops", re.compile(r"ENC\[AES256_GCM,()data:")),
    ("ejson", re.compile(r"EJ\[1:()[A-Za-z0-9+/=]+:")),
    ("pgp-message", re.compile(r"-----BEGIN PGP MESSAGE()-----")),
    ("message-encryptor", re.compile(r"()[A-Za-z0-9+/]+={0,2}--[A-Za-z0-9+/]{16}--[A-Za-z0-9+/]{22}==")),
)  # fmt: skip

_MAGIC = (
    b"GIF8",
    b"PK\x03\x04",
    *(
        bytes.fromhex(text)
        for text in (
            "89504e47", "ffd8ff", "25504446", "1f8b08", "424d", "52494646", "4f676753", "494433", "3082",
            "3081", "7f454c46", "00000100", "28b52ffd", "fd377a58", "425a68", "377abcaf", "4d5a", "789c",
            "78da", "7801", "0000001866747970", "0000002066747970", "d0cf11e0", "1a45dfa3",
        )
    ),
)  # fmt: skip
"""What images, archives, programs and keys begin with: as random as ciphertext, and none."""


def form_of(value: Sampled) -> Form:
    """The form of one value, from itself alone."""
    if isinstance(value, bytes):
        return _form_of_bytes(value)
    text = value.strip()
    for rule in (_refused, _known, _json_form, _separated, _headed, _bare):
        found = rule(text)
        if found is not None:
            return found
    return Form(Likeness.NOTHING, "")


def _refused(text: str) -> Form | None:
    """What is certainly something else."""
    if _PASSWORD_HASH.match(text):
        return Form(Likeness.HASH, "password hash")
    if len(text) < 16 or _UUID.fullmatch(text) or text.startswith(("data:", "http://", "https://", "ssh-")):
        return Form(Likeness.NOTHING, "")
    if text.startswith("-----BEGIN") and "PGP MESSAGE" not in text[:40]:
        return Form(Likeness.NOTHING, "")
    parts = text.split(".")
    if text.startswith("eyJ") and len(parts) in (3, 5):
        header = _json_of(parts[0])
        if len(parts) == 5 and "enc" in header:
            kid = header.get("kid")
            return Form(Likeness.CIPHERTEXT, "jwe", "", kid if isinstance(kid, str) else None)
        return Form(Likeness.TOKEN, "signed token (JWT)")
    return None


def _known(text: str) -> Form | None:
    """Formats that can be told by their looks alone."""
    for family, pattern in _KNOWN_HEADS:
        found = pattern.match(text)
        if found:
            version = found.group(1) or None
            return Form(Likeness.CIPHERTEXT, family, text[: found.start(1)], version)
    if text.startswith("gAAAAA"):
        raw = _decoded(text, "base64url") or b""
        if raw[:1] == b"\x80" and len(raw) >= 73 and (len(raw) - 57) % 16 == 0:
            return Form(Likeness.CIPHERTEXT, "fernet", encoding="base64url")
    if text.startswith("U2FsdGVkX1"):
        return Form(Likeness.CIPHERTEXT, "openssl enc", encoding="base64")
    if text.startswith("eyJ") and {"iv", "value", "mac"} <= set(_json_of(text)):
        family = "laravel-gcm" if _json_of(text).get("tag") else "laravel"
        return Form(Likeness.CIPHERTEXT, family, encoding="base64")
    return None


def _json_form(text: str) -> Form | None:
    if text[:1] not in "{[":
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return Form(Likeness.NOTHING, "")
    if isinstance(document, dict) and {"p", "h"} <= set(document) and isinstance(document["h"], dict):
        named = document["h"].get("i")
        return Form(Likeness.CIPHERTEXT, "rails", version=named if isinstance(named, str) else None)
    return Form(Likeness.NOTHING, "json text")


def _separated(text: str) -> Form | None:
    """Pieces with a separator between them: `iv:tag:ciphertext`."""
    found = take_apart(text)
    if found is None or _is_plain(b"".join(found.raws)):
        return None
    head, version = _template(found.head) or (found.head, None)
    return Form(
        Likeness.CIPHERTEXT,
        "pieces",
        head,
        version,
        found.encoding,
        b"".join(found.raws),
        found.separator,
        found.sizes,
    )


def _headed(text: str) -> Form | None:
    """A head of short parts with a version among them, and a payload: `v1:…`, `enc:v2:…`, `a1.k7:…`."""
    found = _HEADED.fullmatch(text)
    split = _template(found.group(1)) if found else None
    if not found or not split:
        return None
    raw, encoding = _any_decoded(found.group(2))
    if raw is None:
        return None
    if len(raw) < SEALED_BYTES_MIN or _is_plain(raw):
        return Form(Likeness.NOTHING, "")
    return Form(Likeness.CIPHERTEXT, "marker", *split, encoding, raw)


def _template(head: str) -> tuple[str, str] | None:
    """A head as a template, and the version in it: the last of its parts that could be one."""
    for part in reversed(list(re.finditer(r"[^:|$.,]+", head))):
        if _VERSION_PART.fullmatch(part.group()):
            named = re.match(r"key|k|(?=.)", part.group(), re.IGNORECASE)
            at = part.start() + (named.end() if named else 0)
            return f"{head[:at]}{{version}}{head[part.end() :]}", head[at : part.end()]
    return None


def _bare(text: str) -> Form | None:
    if " " in text or "\t" in text:
        return None
    joined = re.sub(r"[\r\n]+", "", text)
    raw, encoding = _any_decoded(joined)
    if raw is None or _is_plain(raw):
        return None
    return Form(Likeness.CIPHERTEXT, "bare", "", None, encoding, raw)


def _form_of_bytes(value: bytes) -> Form:
    found = re.match(rb"((?:[A-Za-z0-9][A-Za-z0-9_-]{0,23}[:|$.,]){1,4})", value[:128])
    if found:
        head = found.group(1).decode()
        split, payload = _template(head), value[len(head) :]
        if split and len(payload) >= SEALED_BYTES_MIN and not _is_plain(payload):
            return Form(Likeness.CIPHERTEXT, "marker", *split, "raw", payload)
    if not value or _is_plain(value):
        # text that was stored in a column of bytes
        text = form_of(value.decode("ascii", "replace")) if value else Form(Likeness.NOTHING, "")
        return text if text.likeness is Likeness.HASH else Form(Likeness.NOTHING, "")
    if value[:1] == b"\x01" and len(value) > 2 and value[2 : 2 + value[1]].isascii() and 2 < value[1] < 40:
        tag = value[2 : 2 + value[1]]
        if re.fullmatch(rb"[A-Za-z0-9._-]+", tag) and len(value) >= 2 + len(tag) + SEALED_BYTES_MIN:
            return Form(Likeness.CIPHERTEXT, "cloak", "", tag.decode(), "raw", value[2 + len(tag) :])
    return Form(Likeness.CIPHERTEXT, "bare", "", None, "raw", value)


def _json_of(part: str) -> dict[str, object]:
    raw = _decoded(part, "base64url") or _decoded(part, "base64") or b""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _any_decoded(text: str) -> tuple[bytes | None, str | None]:
    """A payload's bytes and the encoding that they are in; hex first: every hex text is base64 too."""
    found = _HEX.fullmatch(text)
    if found:
        return bytes.fromhex(found.group(1)), "hex"
    if _BASE64.fullmatch(text) and len(text) % 4 == 0:
        return _decoded(text, "base64"), "base64"
    if _BASE64URL.fullmatch(text) and len(text.rstrip("=")) % 4 != 1:
        return _decoded(text, "base64url"), "base64url"
    return None, None


def _decoded(text: str, encoding: str) -> bytes | None:
    try:
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
        bare = text.rstrip("=")
        return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except (binascii.Error, ValueError):
        return None


def _is_plain(raw: bytes) -> bool:
    """Whether bytes are text, or begin as images, archives and keys do."""
    if raw.startswith(_MAGIC):
        return True
    head = raw[:4_096]
    printable = sum(1 for byte in head if 32 <= byte < 127 or byte in (9, 10, 13))
    if printable >= 0.85 * len(head):
        return True
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as exc:
        # the cut may have gone through a character
        return exc.start >= len(head) - 3 and len(head) >= 16
    return len(head) >= 8


def look_at(values: Sequence[Sampled]) -> Look:
    """What a column's sampled values, none of them NULL, have in common."""
    if not values:
        return NOTHING
    forms = [form_of(value) for value in values]
    families = Counter(
        (form.likeness, form.family) for form in forms if form.likeness is not Likeness.NOTHING
    )
    if not families:
        return Look(Likeness.NOTHING, _other_family(forms), sampled=len(values), lengths=_lengths(values))
    (likeness, family), count = families.most_common(1)[0]
    places = [at for at, form in enumerate(forms) if (form.likeness, form.family) == (likeness, family)]
    shape = Counter((forms[at].separator, len(forms[at].sizes)) for at in places).most_common(1)[0][0]
    places = [at for at in places if (forms[at].separator, len(forms[at].sizes)) == shape]
    count = len(places)
    mine, kept = [forms[at] for at in places], [values[at] for at in places]
    look = Look(
        likeness,
        family,
        marker=_marker(mine) if family in ("marker", "pieces") else None,
        encoding=_encoding(mine, kept),
        versions=_shared(form.version for form in mine),
        sampled=len(values),
        share=count / len(values),
        lengths=_lengths(kept),
        decoded=_lengths([form.payload for form in mine if form.payload is not None]),
        head=_head(mine),
        separator=shape[0],
        spans=tuple((min(sizes), max(sizes)) for sizes in zip(*(form.sizes for form in mine), strict=True)),
        blocks=whole_blocks([form.sizes for form in mine]),
    )
    if look.share < _SHARE_MIN:
        return Look(Likeness.NOTHING, "", sampled=len(values), lengths=_lengths(values))
    if likeness is not Likeness.CIPHERTEXT or family not in ("bare", "marker", "pieces"):
        return look
    return _doubted(look, mine, kept)


def _doubted(look: Look, forms: Sequence[Form], values: Sequence[Sampled]) -> Look:
    """The same look, or what speaks against ciphertext: too orderly, too short, as long as hashes are."""

    def as_(likeness: Likeness, family: str) -> Look:
        return replace(look, likeness=likeness, family=family)

    payloads = [form.payload or b"" for form in forms]
    if not is_random(payloads):
        return as_(Likeness.NOTHING, "")
    if look.family == "pieces" and salted(look.spans):
        return as_(Likeness.HASH, "salt and hash, or random texts")
    if look.family == "pieces" and next(orders(look.spans), None) is None:
        return as_(Likeness.TOKEN, "random texts with separators")
    if look.marker or look.family == "marker":
        # a part that differs from value to value is no version of a key
        distinct = len({form.version for form in forms})
        if distinct > max(8, len(forms) // 4) or (look.marker is None and len(forms) > 1):
            return as_(Likeness.TOKEN, "random text behind a changing head")
        return look
    if look.family == "pieces":
        return look
    if look.decoded[0] >= 5 + SEALED_BYTES_MIN and len(values) > 3:
        first = payloads[0][:5]
        if first[0] == 1 and all(payload[:1] == b"\x01" for payload in payloads):
            heads = Counter(payload[:5] for payload in payloads)
            if len(heads) <= 4 and heads.most_common(1)[0][1] > 1:
                return as_(Likeness.CIPHERTEXT, "tink")
    if look.fixed is not None and look.fixed in _HASH_BYTES:
        return as_(Likeness.HASH, "hash or random token")
    if len(set(values)) < len(values) and len(set(values)) < 0.5 * len(values):
        return as_(Likeness.TOKEN, "repeated random text")
    if look.encoding in ("base64", "base64url") and _is_base62([str(value) for value in values]):
        return as_(Likeness.TOKEN, "random token")
    if look.decoded[1] < SEALED_BYTES_MIN:
        return as_(Likeness.TOKEN, "short random text")
    return look


def is_random(payloads: Sequence[bytes]) -> bool:
    """Whether bytes are spread as random ones are: enough different ones, half of them above 127."""
    # the first byte of each may be a format's, and the same in all
    pooled = b"".join(payload[1:513] for payload in payloads)[:65_536]
    if len(pooled) < 11:
        return False
    expected = 256 * (1 - (1 - 1 / 256) ** len(pooled))
    high = sum(1 for byte in pooled if byte > 127) / len(pooled)
    # 4.5 standard deviations of random bytes, and never so wide that text would do
    margin = min(0.45, max(0.25, 2.25 / len(pooled) ** 0.5))
    often = Counter(pooled).most_common(1)[0][1] / len(pooled)
    varied = len(set(pooled)) >= 0.85 * expected and often <= 0.05 + 3 / len(pooled)
    return varied and abs(high - 0.5) <= margin


def _is_base62(texts: Sequence[str]) -> bool:
    """Whether texts that decode as base64 avoid its two signs, which in that many characters none would."""
    whole = "".join(texts).rstrip("=")
    return len(whole) >= 400 and not any(sign in whole for sign in "+/-_=")


def _encoding(forms: Sequence[Form], values: Sequence[Sampled]) -> str | None:
    """The encoding of a column: one value alone may be in several."""
    found = Counter(form.encoding for form in forms).most_common(1)[0][0]
    if found not in ("base64", "base64url"):
        return found
    texts = [str(value) for value in values]
    return "base64url" if any("-" in text[24:] or "_" in text[24:] for text in texts) else "base64"


def _marker(forms: Sequence[Form]) -> str | None:
    """The template of a marker that most heads fit; None unless most values share it.

    What few of them share may be data: a name, before a key's version.
    """
    template, count = Counter(form.head for form in forms).most_common(1)[0]
    return template or None if count > 1 and 2 * count > len(forms) else None


def _head(forms: Sequence[Form]) -> str:
    """What all values begin with, if they have one head and several share it."""
    heads = {form.head.replace("{version}", form.version or "") for form in forms}
    return heads.pop() if len(heads) == 1 and len(forms) > 1 else ""


def _shared(versions: Iterable[str | None]) -> Counter[str]:
    """Versions that several values share; one that a single value has may be a part of it."""
    counted = Counter(version for version in versions if version)
    return Counter({version: n for version, n in counted.items() if n > 1 and len(version) <= 40})


def _other_family(forms: Sequence[Form]) -> str:
    return Counter(form.family for form in forms).most_common(1)[0][0]


def _lengths(values: Sequence[Sampled]) -> tuple[int, int, int]:
    if not values:
        return 0, 0, 0
    sizes = sorted(len(value) for value in values)
    return sizes[0], int(statistics.median_low(sizes)), sizes[-1]
