"""What the openssl command makes: AES in CBC and CTR, AES key wrap, RSA-OAEP, a Fernet token by hand.

python openssl.py make SEED | python broken.py > ../openssl.json     the same for the same seed
python openssl.py make | python broken.py                            new keys and nonces each time
python openssl.py rsa | python broken.py > ../rsa.json
python openssl.py open < [{"layout", "key", "value"}, …] > ["plaintext in hex", …]
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

Made = dict[str, Any]

TEXTS = ['"a"', '{"iban":"CH93 0076 2011 6238 5295 7","✓":1}', json.dumps("x" * 300)]

TIME = 1_600_000_000
"""When the Fernet tokens were made, in seconds."""

drawn = 0


def drawn_bytes(size: int, seed: str | None) -> bytes:
    """Random bytes, or with a seed always the same ones."""
    global drawn
    drawn += 1
    return os.urandom(size) if seed is None else hashlib.sha512(f"{seed} {drawn}".encode()).digest()[:size]


def openssl(*words: str, given: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], input=given, capture_output=True, check=True).stdout


def enc(cipher: str, key: bytes, iv: bytes, text: bytes, *more: str) -> bytes:
    return openssl("enc", *more, f"-{cipher}", "-K", key.hex(), "-iv", iv.hex(), given=text)


WRAPS = {
    # RFC 3394 and RFC 5649, each with its own initial value
    "aes-key-wrap": ("id-aes256-wrap", bytes.fromhex("a6a6a6a6a6a6a6a6")),
    "aes-key-wrap-pad": ("id-aes256-wrap-pad", bytes.fromhex("a65959a6")),
}

DIGESTS = {"rsa-oaep-256": "sha256", "rsa-oaep": "sha1"}


def pkeyutl(cipher: str, key: bytes, text: bytes, direction: str) -> bytes:
    digest = DIGESTS[cipher]
    padding = ["rsa_padding_mode:oaep", f"rsa_oaep_md:{digest}", f"rsa_mgf1_md:{digest}"]
    options = [word for one in padding for word in ("-pkeyopt", one)]
    with tempfile.NamedTemporaryFile(suffix=".der") as file:
        file.write(key)
        file.flush()
        return openssl("pkeyutl", direction, "-inkey", file.name, "-keyform", "DER", *options, given=text)


def opened(layout: Made, key: bytes, value: str) -> bytes:
    cipher = layout.get("cipher", layout.get("like"))
    raw = base64.b64decode(value.replace("-", "+").replace("_", "/"))
    if cipher in DIGESTS:
        return pkeyutl(cipher, key, raw, "-decrypt")
    if cipher in WRAPS:
        program, iv = WRAPS[cipher]
        return enc(program, key, iv, raw, "-d")
    if cipher == "fernet":
        return enc("aes-128-cbc", key[16:], raw[9:25], raw[25:-32], "-d")
    return enc(cipher, key, raw[:16], raw[16:], "-d")


def made(
    layout: Made, key: bytes, other: bytes, seal: Callable[[bytes, bytes], str], texts: list[bytes]
) -> Made:
    """One set: each text sealed, and one value under another key."""
    vectors: list[Made] = [{"expect": "ok", "plain": t.hex(), "value": seal(key, t)} for t in texts]
    value = seal(other, texts[1])
    vectors.append({"expect": "unknown-key", "why": "sealed under another key", "value": value})
    return {"layout": layout, "key": key.hex(), "vectors": vectors}


def symmetric(seed: str | None) -> list[Made]:
    sets = []
    texts = [text.encode() for text in TEXTS]
    for cipher, size, plaintext, empty in (
        ("aes-256-cbc", 32, "utf8", [b""]),
        ("aes-128-cbc", 16, "utf8", [b""]),
        ("aes-256-ctr", 32, "json", []),
    ):

        def block(key: bytes, text: bytes, cipher: str = cipher) -> str:
            iv = drawn_bytes(16, seed)
            return base64.b64encode(iv + enc(cipher, key, iv, text)).decode()

        keys = drawn_bytes(size, seed), drawn_bytes(size, seed)
        layout = {"encoding": "base64", "cipher": cipher, "plaintext": plaintext}
        sets.append(made(layout, *keys, block, [*texts, *empty]))

    def token(key: bytes, text: bytes) -> str:
        iv = drawn_bytes(16, seed)
        body = b"\x80" + TIME.to_bytes(8, "big") + iv + enc("aes-128-cbc", key[16:], iv, text)
        mac = openssl(
            "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key[:16].hex()}", "-binary", given=body
        )
        return base64.urlsafe_b64encode(body + mac).decode()

    fernet = made({"like": "fernet"}, drawn_bytes(32, seed), drawn_bytes(32, seed), token, [*texts, b""])
    for vector in fernet["vectors"]:
        vector["time"] = TIME
    return [*sets, fernet]


def wraps(seed: str | None) -> list[Made]:
    """Data keys under AES key wrap (RFC 3394), and texts of any length with padding (RFC 5649)."""
    sets = []
    for cipher, (program, iv) in WRAPS.items():

        def wrap(key: bytes, text: bytes, program: str = program, iv: bytes = iv) -> str:
            return base64.b64encode(enc(program, key, iv, text)).decode()

        keys = drawn_bytes(32, seed), drawn_bytes(32, seed)
        texts = [drawn_bytes(size, seed) for size in (16, 32, 64)]
        if cipher.endswith("pad"):
            texts += [b"a", "Grüße, Zürich ✓".encode()]
        sets.append(made({"encoding": "base64", "cipher": cipher}, *keys, wrap, texts))
    return sets


def rsa() -> list[Made]:
    sets = []
    for cipher in DIGESTS:
        generate = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"]
        keys = [openssl(*generate) for _ in range(3)]

        def wrap(key: bytes, text: bytes, cipher: str = cipher) -> str:
            return base64.b64encode(pkeyutl(cipher, key, text, "-encrypt")).decode()

        texts = [os.urandom(32), b"", "Grüße, Zürich ✓".encode()]
        one = made({"encoding": "base64", "cipher": cipher}, keys[0], keys[1], wrap, texts)
        sets.append({**one, "spare": keys[2].hex()})
    return sets


def main(verb: str, seed: str | None) -> Any:
    if verb == "open":
        asked = json.load(sys.stdin)
        return [opened(one["layout"], bytes.fromhex(one["key"]), one["value"]).hex() for one in asked]
    sets = rsa() if verb == "rsa" else [*symmetric(seed), *wraps(seed)]
    version = openssl("version").decode().split()[1]
    # what made a seeded set does not depend on the version of OpenSSL
    return {"maker": f"openssl {version}" if seed is None else f"openssl, seed {seed}", "sets": sets}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
