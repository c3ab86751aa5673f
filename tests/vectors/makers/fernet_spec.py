"""The tokens of Fernet's own specification: github.com/fernet/spec, generate.json, verify.json, invalid.json.

python fernet_spec.py | python broken.py > ../fernet_spec.json

Its examples also say when a token is too old or too new. Whoever rotates keys does not ask that: such tokens
open, and keep their time.
"""

from __future__ import annotations

import base64
import json

KEY = base64.urlsafe_b64decode("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=")

GENERATED = (
    "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
)

OK = [
    ("generate.json, verify.json", GENERATED, 499162800, b"hello"),
    (
        "invalid.json: far-future TS (unacceptable clock skew)",
        "gAAAAAAdwStRAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAnja1xKYyhd-Y6mSkTOyTGJmw2Xc2a6kBd-iX9b_qXQcw==",
        499198801,
        b"",
    ),
    (
        "invalid.json: expired TTL",
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==",
        499162801,
        b"",
    ),
]

INVALID = [
    (
        "bad-tag",
        "incorrect mac",
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykQUFBQUFBQUFBQQ==",
        "",
    ),
    ("malformed", "too short", "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPA==", "plaintext"),
    (
        "malformed",
        "invalid base64",
        "%%%%%%%%%%%%%AECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==",
        "plaintext",
    ),
    (
        "malformed",
        "payload size not multiple of block size",
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPOm73QeoCk9uGib28Xe5vz6oxq5nmxbx_v7mrfyudzUm",
        "plaintext",
    ),
    # the MAC is right: what is within, the layout does not know before it opens it
    (
        "malformed",
        "payload padding error",
        "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNEHbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw==",
        "unopenable",
    ),
    (
        "malformed",
        "incorrect IV (causes padding error)",
        "gAAAAAAdwJ6xBQECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAkLhFLHpGtDBRLRTZeUfWgHSv49TF2AUEZ1TIvcZjK1zQ==",
        "unopenable",
    ),
    ("malformed", "trailing characters after b64 padding", f"{GENERATED}trailingdata", "plaintext"),
    (
        "malformed",
        "invalid characters in b64",
        "*gAAAAAAdwJ6wAAECAwQFBgcI!CQoLDA0ODy021?cpGVWKZ_eEwC@GM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==",
        "plaintext",
    ),
    (
        "malformed",
        "invalid non-urlsafe characters in b64",
        "gAAAAAAdwJ6wAAEC/AwQFBgcICQoLDA0ODy+021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==",
        "malformed",
    ),
]

if __name__ == "__main__":
    vectors: list[dict[str, object]] = [
        {"expect": "ok", "why": why, "plain": plain.hex(), "value": token, "time": time}
        for why, token, time, plain in OK
    ]
    for expect, why, token, run in INVALID:
        told = {"expect": expect, "why": f"invalid.json: {why}", "value": token}
        vectors.append(told | ({"run": run} if run else {}))
    made = {"layout": {"like": "fernet"}, "key": KEY.hex(), "vectors": vectors}
    print(json.dumps({"maker": "github.com/fernet/spec", "sets": [made]}))
