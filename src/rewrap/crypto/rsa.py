"""RSA-OAEP: data keys wrapped with a public key, and unwrapped with a private one or by whoever has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from rewrap.crypto.answers import answers, same_again
from rewrap.crypto.cipher import Aads, Batch, Carried, OpenBatch, SealBatch
from rewrap.crypto.failures import Unsealable


@dataclass(frozen=True, slots=True)
class RsaOaep(Carried):
    """RSA-OAEP with MGF1 over the same hash and no label (RFC 8017 7.1): as many bytes as the modulus has.

    A key is DER: a private one (PKCS #8), or a public one (SubjectPublicKeyInfo), whose private half is
    elsewhere. With a public key values are sealed here, and opened by asking (`rewrap.crypto.answers`, the
    source is the public key's DER). Whoever has the public key can seal: opening proves the key, and not who
    has sealed.
    """

    name: str
    hash: type[hashes.HashAlgorithm]
    key_bytes: int = 0
    nonce_bytes: int = 0
    tag_bytes: int = 0
    binds_aad: bool = False
    seal_limit: int | None = None
    # of an RSA key of 1,024 bits, the smallest that any vault has
    least_bytes: int = 128
    order: tuple[str, ...] = ("ciphertext",)

    @property
    def padding(self) -> OAEP:
        return OAEP(MGF1(self.hash()), self.hash(), None)

    def opener(self, key: bytes) -> OpenBatch:
        private, padding = private_key(key), self.padding
        if private is None:
            public_key(key)

        def open_here(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            assert private is not None
            return [private.decrypt(raw[at:], padding) for raw in sealed]

        def open_there(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
            opened = answers(key, [raw[at:] for raw in sealed])
            if None in opened:
                raise ValueError("a value does not open")
            return opened

        return open_there if private is None else open_here

    def sealer(self, key: bytes) -> SealBatch:
        private = private_key(key)
        public, padding = public_key(key) if private is None else private.public_key(), self.padding
        # RFC 8017 7.1.1: what is left of the modulus beside two hashes and two bytes
        most = public.key_size // 8 - 2 * self.hash().digest_size - 2

        def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
            if any(len(text) > most for text in plain):
                raise Unsealable(
                    f"{self.name} under a key of {public.key_size} bits wraps {most} bytes at most"
                )
            return [same_again(key, text, partial(public.encrypt, text, padding)) for text in plain]

        return seal_batch


def private_key(der: bytes) -> RSAPrivateKey | None:
    """The private key in some DER; None where it is a public key's."""
    try:
        key = load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, RSAPrivateKey) else None


def public_key(der: bytes) -> RSAPublicKey:
    """The public key in some DER; ValueError where there is none."""
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("this is no RSA key in DER") from None
    if not isinstance(key, RSAPublicKey):
        raise ValueError("this is no RSA key")
    return key
