"""The local provider: keys from environment variables and files."""

from __future__ import annotations

import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pybase64 import b64decode

from rewrap.crypto.kdf import LEAST_SECRET_BYTES
from rewrap.crypto.rsa import private_key
from rewrap.errors import KeyAccessError
from rewrap.job import Job
from rewrap.keys.keyring import Key
from rewrap.keys.listed import Listed, Permission

ENCODINGS = ("hex", "base64", "raw", "utf8", "pem")

_LARAVEL = b"base64:"
"""Stands before a key in base64 where Laravel keeps it."""


def load_key(
    version: str,
    reference: str,
    encoding: str,
    lengths: frozenset[int],
    environ: Mapping[str, str],
    folder: Path,
) -> Key:
    """The key that `reference` (`env:NAME` or `file:PATH`) holds.

    `lengths` are the key lengths in bytes that the job's layouts take; none when they derive keys from
    secrets of any length. A relative path is read from `folder`. Raises KeyAccessError, which names where
    the key should be and never what was there.
    """
    scheme, _, place = reference.partition(":")
    where = f"environment variable {place}" if scheme == "env" else f"file {place}"
    if scheme == "env":
        text = environ.get(place)
        if text is None:
            raise KeyAccessError(
                f'key version "{version}" is missing: {where} is not set',
                hint=f"set {place} to the {encoding} form of the key, or correct keys.versions.{version}",
            )
        stored = text.encode("utf-8", "surrogateescape")
    else:
        path = folder / os.path.expanduser(place)
        try:
            stored = path.read_bytes()
        except OSError as exc:
            raise KeyAccessError(
                f'key version "{version}" is missing: {where}: {exc.strerror}',
                hint="check the path and its permissions; a relative path starts at the job file",
            ) from None
    return key_from(
        version, stored, encoding, lengths, where=where, setting=f"keys.versions.{version}.encoding"
    )


def key_from(
    version: str, stored: bytes, encoding: str, lengths: frozenset[int], *, where: str, setting: str
) -> Key:
    """The key in bytes that somebody keeps, written in one of ENCODINGS.

    `where` they are kept and the field of the job that says how, `setting`, are for messages; `lengths` as in
    `load_key`. Raises KeyAccessError.
    """
    if encoding == "pem":
        return Key(version, _private(stored, version, where))
    secret = _decode(stored, encoding, version, where, setting)
    if not lengths:
        if len(secret) < LEAST_SECRET_BYTES:
            raise KeyAccessError(
                f'key version "{version}" in {where} has {len(secret)} bytes, keys are derived from '
                f"{LEAST_SECRET_BYTES} or more",
                hint="a short secret can be guessed from its fingerprint; check that this is the whole of it",
            )
    elif len(secret) not in lengths:
        wanted = " or ".join(str(n) for n in sorted(lengths))
        raise KeyAccessError(
            f'key version "{version}" in {where} has {len(secret)} bytes, its layout takes {wanted}',
            hint=_length_hint(stored, secret, encoding, lengths),
        )
    kept_as = text_fingerprint(stored) if encoding in ("hex", "base64") else ""
    return Key(version, secret, text_fingerprint=kept_as)


def text_fingerprint(stored: bytes) -> str:
    """The SHA-256 of the text that a key is kept as, in hex: a file's last newline is not part of it."""
    return hashlib.sha256(stored.strip()).hexdigest()


def local_key(job: Job, version: str, environ: Mapping[str, str]) -> Key:
    """The key of a version that the job names, from its variable or file. Raises KeyAccessError."""
    section = job.keys.versions[version]
    key = load_key(version, section.material, section.encoding, job.key_lengths, environ, job.folder)
    require_fit(key, job, f"keys.versions.{version}.encoding")
    if section.index is None:
        return key
    apart = load_key(version, section.index, section.encoding, frozenset(), environ, job.folder)
    return replace(key, index=apart.secret)


def require_fit(key: Key, job: Job, setting: str) -> None:
    """Raises KeyAccessError for a key that is none of those that the job's layouts wrap with."""
    if job.wraps_by_rsa and private_key(key.secret) is None:
        raise KeyAccessError(
            f'key version "{key.version}" is no RSA key, and its layouts wrap with RSA',
            hint=f'set {setting} = "pem" for a key in PEM',
        )


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """Every version that the job names, at hand or not."""
    found = []
    for version, section in job.keys.versions.items():
        scheme, _, place = section.material.partition(":")
        key, state = None, f"in {place}" if scheme == "env" else f"in file {place}"
        try:
            key = local_key(job, version, environ)
        except KeyAccessError as exc:
            state = exc.message.removeprefix(f'key version "{version}" ')
        found.append(
            Listed(
                version,
                usable=key is not None,
                state=state,
                fingerprint=None if key is None else key.fingerprint,
                fingerprint_of="" if key is None else key.fingerprint_of,
                permissions=(Permission("open", "read", not state.startswith("is missing")),),
                text_fingerprint="" if key is None else key.text_fingerprint,
            )
        )
    return found


def _decode(stored: bytes, encoding: str, version: str, where: str, setting: str) -> bytes:
    try:
        if encoding == "hex":
            return binascii.unhexlify(stored.strip())
        if encoding == "base64":
            text = stored.strip().removeprefix(_LARAVEL).rstrip(b"=")
            # the URL-safe alphabet is often written without padding, and need not show a "-" or "_"
            alphabet = b"-_" if b"-" in text or b"_" in text else None
            return b64decode(text + b"=" * (-len(text) % 4), alphabet, validate=True)
        if encoding == "utf8":
            stored.decode()
            return stored.removesuffix(b"\n").removesuffix(b"\r")
    except (ValueError, binascii.Error):
        raise KeyAccessError(
            f'key version "{version}" in {where} is not {encoding}',
            hint=f"write it as {encoding}, or set {setting} to one of {', '.join(ENCODINGS)}",
        ) from None
    return stored


def _private(stored: bytes, version: str, where: str) -> bytes:
    """An RSA key from PEM, as PKCS #8 in DER: the same key has one form, and one fingerprint."""
    try:
        key = load_pem_private_key(stored, None)
    except TypeError:
        raise KeyAccessError(
            f'key version "{version}" in {where} is encrypted with a passphrase',
            hint="write it without one: openssl pkey -in KEY.pem -out PLAIN.pem",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyAccessError(
            f'key version "{version}" in {where} is no private key in PEM',
            hint="it begins with -----BEGIN PRIVATE KEY-----; a public key or a certificate opens nothing",
        ) from None
    if not isinstance(key, RSAPrivateKey):
        raise KeyAccessError(
            f'key version "{version}" in {where} is no RSA key', hint="make one with: openssl genrsa 4096"
        )
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _length_hint(stored: bytes, secret: bytes, encoding: str, lengths: frozenset[int]) -> str:
    if encoding == "raw" and stored.endswith(b"\n") and len(secret.rstrip(b"\r\n")) in lengths:
        return "the file ends with a newline; write it without one (printf %s), or use hex"
    if encoding in ("raw", "utf8") and len(stored.strip()) in {2 * n for n in lengths}:
        return 'this looks like hex; set encoding = "hex"'
    if encoding == "base64" and len(stored.strip()) in {2 * n for n in lengths}:
        return 'this has the length of hex; set encoding = "hex"'
    options = {"hex": "-hex {0}", "base64": "-base64 {0}", "utf8": "-hex {1}"}.get(encoding, "{0}")
    commands = [f"openssl rand {options.format(n, n // 2)}" for n in sorted(lengths)]
    # stored values may be under this key: to make another one is not the first thing to do
    return (
        "check that this is the whole of it, and that the layout's cipher is one for a key of its length; "
        f"a new key that fits is made with: {' or '.join(commands)}"
    )
