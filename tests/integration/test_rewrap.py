"""Rewrapping data keys in Postgres: the wrapping and its version change, and what they have sealed does not.

Keys and payloads are made and opened by Node's own crypto.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.conftest import require
from tests.support.envelopes import Sealed, asked, b64, open_all, require_node, seal_all, unb64
from tests.support.values import KEY_V1, KEY_V2, KEY_V3
from tests.support.workbench import UNYIELDING, Result, Workbench, wait_for, wait_while

KEKS = {"v1": KEY_V1, "v2": KEY_V2, "v3": KEY_V3}

WRAP_AAD = "dek-wrap"

LAYOUTS = """
[layouts.wrap]
encoding = "base64"
cipher = "aes-256-gcm"
aad = "dek-wrap"
[layouts.wrap-bytes]
encoding = "raw"
cipher = "aes-256-gcm"
aad = "dek-wrap"
"""

SEPARATE = """
[[targets]]
table = "deks"
fields = [{ column = "wrapped_dek", layout = "wrap", version = { column = "mek_version" }, \
nonce = { column = "wrap_iv" }, tag = { column = "wrap_tag" } }]
untouched = ["*"]
"""

BYTES = """
[[targets]]
table = "deks"
fields = [{ column = "wrapped_dek", layout = "wrap-bytes", version = { column = "mek_version" } }]
untouched = ["*"]
"""

BESIDE = """
[[targets]]
table = "accounts"
untouched = ["name", "doc.body", "doc.dek.id", "doc.dek.algorithm"]
[[targets.fields]]
column = "doc"
path = "dek.wrapped"
layout = "wrap"
version = { path = "dek.mekVersion" }
nonce = { path = "dek.iv" }
tag = { path = "dek.tag" }
"""

ELEMENTS = """
[[targets]]
table = "accounts"
untouched = ["name", "doc.items", "doc.deks[*].id", "doc.deks[*].payload"]
[[targets.fields]]
column = "doc"
path = "deks[*].wrapped"
layout = "wrap"
version = { path = "deks[*].mekVersion" }
nonce = { path = "deks[*].iv" }
tag = { path = "deks[*].tag" }
"""

PAYLOADS = """
[[untouched]]
table = "payloads"
"""


@pytest.fixture(autouse=True)
def _node() -> None:
    require_node()


def data_keys(count: int) -> list[bytes]:
    return [os.urandom(32) for _ in range(count)]


def wrapped(deks: list[bytes], versions: list[str]) -> list[Sealed]:
    return seal_all([(KEKS[v], dek, WRAP_AAD) for dek, v in zip(deks, versions, strict=True)])


def rotate(bench: Workbench, versions: str = "v1", to: str = "v2", code: int = 0) -> Result:
    ran = bench.rewrap("run", "--from", versions, "--to", to, "--allow-unseen-target", "--json")
    assert ran.code == code, ran.err
    return ran


def prove(bench: Workbench) -> None:
    """Verify opens every data key under the new key alone, and finds all else as it was."""
    found = bench.rewrap("verify", "--deep", "--json", KEY_V1="")
    assert found.code == 0, found.out
    compared = [e for e in found.events if e["type"] == "untouched"]
    assert compared
    for event in compared:
        assert event["fingerprint"] == event["fingerprint_before"], event
        assert event["rows"] == event["unchanged"] > 0


def payloads(bench: Workbench, deks: list[bytes]) -> list[tuple[int, int, bytes]]:
    """Two payloads under each data key, in a table of their own: (id, place of its key, plaintext)."""
    made = [(at * 2 + n, at, f"payload {at}.{n} ✓".encode()) for at in range(len(deks)) for n in range(2)]
    sealed = seal_all([(deks[at], plain, f"payload-{i}") for i, at, plain in made])
    bench.sql("CREATE TABLE payloads (id int PRIMARY KEY, dek int, ct text, iv text, tag bytea)")
    bench.insert(
        "payloads",
        ["id", "dek", "ct", "iv", "tag"],
        [(i, at, b64(one.ct), b64(one.iv), one.tag) for (i, at, _), one in zip(made, sealed, strict=True)],
    )
    return made


def opened(bench: Workbench, deks: list[bytes] | dict[int, bytes]) -> list[bytes | None]:
    """Every payload, as the application reads it with the data keys that it unwrapped."""
    rows = bench.sql("SELECT id, dek, ct, iv, tag FROM payloads ORDER BY id")
    return open_all(
        [
            (deks[r["dek"]], Sealed(unb64(r["iv"]), unb64(r["ct"]), r["tag"]), f"payload-{r['id']}")
            for r in rows
        ]
    )


def unwrapped(entries: list[tuple[str, Sealed]]) -> list[bytes]:
    """Data keys as the application unwraps them, with the key-encryption key that each names."""
    found = open_all([(KEKS[version], one, WRAP_AAD) for version, one in entries])
    assert None not in found
    return [dek for dek in found if dek is not None]


@pytest.mark.parametrize("versions", ["v1", "v1,v3"])
def test_rows_with_iv_tag_and_version_in_columns(bench: Workbench, versions: str) -> None:
    """One update changes ciphertext, iv, tag and version; payloads open with the keys unwrapped anew."""
    bench.job(SEPARATE, LAYOUTS + PAYLOADS)
    deks, old = data_keys(120), versions.split(",")
    under = [old[at % len(old)] for at in range(120)]
    bench.sql(
        "CREATE TABLE deks (id int PRIMARY KEY, org uuid NOT NULL, wrapped_dek text NOT NULL, "
        "wrap_iv text NOT NULL, wrap_tag text NOT NULL, mek_version text NOT NULL, "
        "created_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = [
        (at, uuid.uuid4(), b64(one.ct), b64(one.iv), b64(one.tag), under[at])
        for at, one in enumerate(wrapped(deks, under))
    ]
    bench.insert("deks", ["id", "org", "wrapped_dek", "wrap_iv", "wrap_tag", "mek_version"], rows)
    made = payloads(bench, deks)
    rotate(bench, versions)
    prove(bench)
    after = bench.sql("SELECT wrapped_dek, wrap_iv, wrap_tag, mek_version FROM deks ORDER BY id")
    for before, now in zip(rows, after, strict=True):
        assert now["mek_version"] == "v2"
        assert not {before[2], before[3], before[4]} & {now["wrapped_dek"], now["wrap_iv"], now["wrap_tag"]}
    again = unwrapped(
        [
            (r["mek_version"], Sealed(unb64(r["wrap_iv"]), unb64(r["wrapped_dek"]), unb64(r["wrap_tag"])))
            for r in after
        ]
    )
    assert again == deks
    assert opened(bench, again) == [plain for _, _, plain in made]


def test_bytes_with_a_number_for_a_version(bench: Workbench) -> None:
    """iv ‖ ciphertext ‖ tag in one column of bytes, the version as a number beside it."""
    job = bench.job(BYTES, LAYOUTS + PAYLOADS)
    text = job.read_text()
    for n in (1, 2, 3):
        text = text.replace(f"[keys.versions.v{n}]", f"[keys.versions.{n}]")
    job.write_text(text)
    deks = data_keys(60)
    bench.sql("CREATE TABLE deks (id int PRIMARY KEY, wrapped_dek bytea, mek_version int, label text)")
    rows = [(at, one.joined, 1, "x") for at, one in enumerate(wrapped(deks, ["v1"] * 60))]
    bench.insert("deks", ["id", "wrapped_dek", "mek_version", "label"], rows)
    made = payloads(bench, deks)
    rotate(bench, "1", "2")
    prove(bench)
    after = bench.sql("SELECT wrapped_dek AS raw, mek_version FROM deks ORDER BY id")
    again = unwrapped([(f"v{r['mek_version']}", _cut(r["raw"])) for r in after])
    assert {r["mek_version"] for r in after} == {2}
    assert again == deks
    assert opened(bench, again) == [plain for _, _, plain in made]


def _cut(raw: bytes) -> Sealed:
    return Sealed(raw[:12], raw[12:-16], raw[-16:])


def _record(one: Sealed, version: str) -> dict[str, str]:
    return {"wrapped": b64(one.ct), "iv": b64(one.iv), "tag": b64(one.tag), "mekVersion": version}


def _of_record(record: dict[str, Any]) -> tuple[str, Sealed]:
    return record["mekVersion"], Sealed(unb64(record["iv"]), unb64(record["wrapped"]), unb64(record["tag"]))


def accounts(bench: Workbench, documents: list[dict[str, Any]]) -> None:
    bench.sql("CREATE TABLE accounts (id int PRIMARY KEY, name text, doc jsonb)")
    bench.sql(
        "INSERT INTO accounts SELECT i, 'account ' || i, d "
        "FROM unnest($1::jsonb[]) WITH ORDINALITY AS x(d, i)",
        [json.dumps(one) for one in documents],
    )


def read(bench: Workbench) -> list[dict[str, Any]]:
    return [json.loads(row["doc"]) for row in bench.sql("SELECT doc::text AS doc FROM accounts ORDER BY id")]


@pytest.mark.parametrize("versions", ["v1", "v1,v3"])
def test_data_key_in_an_object_of_a_document(bench: Workbench, versions: str) -> None:
    """The wrapping lies beside what it is the key of, in one document: only its four properties change."""
    bench.job(BESIDE, LAYOUTS)
    deks, old = data_keys(80), versions.split(",")
    under = [old[at % len(old)] for at in range(80)]
    bodies = seal_all([(dek, f"note {at}".encode(), "") for at, dek in enumerate(deks)])
    documents = [
        {
            "dek": {"id": f"d{at}", "algorithm": "A256GCM", **_record(one, under[at])},
            "body": {**body.texts, "dekId": f"d{at}"},
            "title": "plain",
        }
        for at, (one, body) in enumerate(zip(wrapped(deks, under), bodies, strict=True))
    ]
    accounts(bench, documents)
    rotate(bench, versions)
    prove(bench)
    after = read(bench)
    assert unwrapped([_of_record(doc["dek"]) for doc in after]) == deks
    assert open_all([(dek, body, "") for dek, body in zip(deks, bodies, strict=True)]) == [
        f"note {at}".encode() for at in range(80)
    ]
    for before, now in zip(documents, after, strict=True):
        assert now["dek"].pop("mekVersion") == "v2"
        for part in ("wrapped", "iv", "tag"):
            assert now["dek"].pop(part) != before["dek"][part]
            before["dek"].pop(part)
        before["dek"].pop("mekVersion")
        assert now == before


def test_data_keys_in_the_elements_of_an_array(bench: Workbench) -> None:
    """Each element names its own version; one at the new key already stays, and payloads beside them too."""
    bench.job(ELEMENTS, LAYOUTS)
    documents, plain, keys = [], [], []
    for at in range(16):
        deks = data_keys(at % 4)
        under = [("v1", "v2", "v3")[n % 3] for n in range(len(deks))]
        bodies = seal_all([(dek, f"{at}.{n}".encode(), "") for n, dek in enumerate(deks)]) if deks else []
        keys.append(deks)
        plain.append([f"{at}.{n}".encode() for n in range(len(deks))])
        records = wrapped(deks, under) if deks else []
        documents.append(
            {
                "deks": [
                    {"id": n, "payload": body.texts, **_record(one, under[n])}
                    for n, (one, body) in enumerate(zip(records, bodies, strict=True))
                ],
                "items": [1, {"a": None}],
            }
        )
    accounts(bench, documents)
    rotate(bench, "v1,v3")
    prove(bench)
    for before, now, deks, texts in zip(documents, read(bench), keys, plain, strict=True):
        assert unwrapped([_of_record(one) for one in now["deks"]]) == deks
        assert {one["mekVersion"] for one in now["deks"]} <= {"v2"}
        sealed = [
            Sealed(*(unb64(one["payload"][part]) for part in ("iv", "ct", "tag"))) for one in now["deks"]
        ]
        assert open_all([(dek, one, "") for dek, one in zip(deks, sealed, strict=True)]) == texts
        for was, one in zip(before["deks"], now["deks"], strict=True):
            assert (one == was) == (was["mekVersion"] == "v2")
            assert (one["id"], one["payload"]) == (was["id"], was["payload"])
        assert now["items"] == before["items"]


RSA_LAYOUTS = """
[layouts.rsa]
encoding = "{encoding}"
cipher = "{cipher}"
"""

RSA = """
[[targets]]
table = "deks"
fields = [{ column = "wrapped_dek", layout = "rsa", version = { column = "mek_version" } }]
untouched = ["*"]
"""


def rsa_keys(bench: Workbench, count: int = 3) -> dict[str, str]:
    """Key pairs made by openssl, as environment variables have them; their files by version."""
    files = {}
    for version in list(KEKS)[:count]:
        path = bench.folder / f"{version}.pem"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(path))
        der = _openssl("pkcs8", "-topk8", "-nocrypt", "-in", str(path), "-outform", "DER")
        bench.environ[f"KEY_{version.upper()}"] = der.hex()
        files[version] = str(path)
    return files


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize(
    ("cipher", "digest", "kind"),
    [
        ("rsa-oaep-256", "sha256", "text"),
        ("rsa-oaep-256", "sha256", "bytea"),
        ("rsa-oaep", "sha1", "text"),
    ],
)
def test_wrapped_with_rsa(bench: Workbench, cipher: str, digest: str, kind: str) -> None:
    """Wrapped by Node with the public key, unwrapped by openssl with the new private one."""
    require("OpenSSL", "openssl")
    layout = RSA_LAYOUTS.format(encoding="base64" if kind == "text" else "raw", cipher=cipher)
    bench.job(RSA, layout + PAYLOADS)
    pems = rsa_keys(bench)
    deks = data_keys(40)
    under = [("v1", "v3")[at % 2] for at in range(40)]
    texts = asked(
        [
            {"verb": "wrap", "pem": Path(pems[v]).read_text(), "hash": digest, "plain": b64(dek)}
            for dek, v in zip(deks, under, strict=True)
        ]
    )
    bench.sql(f"CREATE TABLE deks (id int PRIMARY KEY, wrapped_dek {kind}, mek_version text, note text)")
    as_stored = texts if kind == "text" else [unb64(text) for text in texts]
    rows = [(at, value, under[at], f"note {at}") for at, value in enumerate(as_stored)]
    bench.insert("deks", ["id", "wrapped_dek", "mek_version", "note"], rows)
    made = payloads(bench, deks)
    rotate(bench, "v1,v3")
    prove(bench)
    after = bench.sql("SELECT wrapped_dek, mek_version FROM deks ORDER BY id")
    assert {r["mek_version"] for r in after} == {"v2"}
    oaep = ["rsa_padding_mode:oaep", f"rsa_oaep_md:{digest}", f"rsa_mgf1_md:{digest}"]
    options = [word for option in oaep for word in ("-pkeyopt", option)]
    again = [
        _openssl(
            "pkeyutl", "-decrypt", "-inkey", pems["v2"], *options,
            given=unb64(r["wrapped_dek"]) if kind == "text" else r["wrapped_dek"],
        )
        for r in after
    ]  # fmt: skip
    assert again == deks
    assert opened(bench, again) == [plain for _, _, plain in made]


def test_damaged_wrapping_is_put_aside_and_the_rest_is_rewrapped(bench: Workbench) -> None:
    """A row whose wrapped key does not open keeps its bytes and its version."""
    require("OpenSSL", "openssl")
    bench.job(RSA, RSA_LAYOUTS.format(encoding="base64", cipher="rsa-oaep-256"))
    pems = rsa_keys(bench)
    deks = data_keys(30)
    pem = Path(pems["v1"]).read_text()
    texts = asked([{"verb": "wrap", "pem": pem, "hash": "sha256", "plain": b64(dek)} for dek in deks])
    damaged = b64(os.urandom(256))
    bench.sql("CREATE TABLE deks (id int PRIMARY KEY, wrapped_dek text, mek_version text)")
    rows = [(at, damaged if at == 7 else text, "v1") for at, text in enumerate(texts)]
    bench.insert("deks", ["id", "wrapped_dek", "mek_version"], rows)
    ran = rotate(bench, code=3)
    assert ran.event("run_ended")["outcomes"] == {"deks": {"wrapped_dek": {"resealed": 29, "quarantined": 1}}}
    kept = bench.sql("SELECT wrapped_dek, mek_version FROM deks WHERE id = 7")[0]
    assert (kept["wrapped_dek"], kept["mek_version"]) == (damaged, "v1")
    assert bench.value("SELECT count(*) FROM deks WHERE mek_version = 'v2'") == 29


class Application(threading.Thread):
    """Writes payloads under keys that are there, and makes new keys under the new version, all the while."""

    def __init__(self, bench: Workbench, deks: dict[int, bytes], plain: dict[int, bytes]) -> None:
        super().__init__(daemon=True)
        self.bench, self.deks, self.plain = bench, deks, plain
        self.there = set(plain)
        self.rewritten: set[int] = set()
        self.inserted: set[int] = set()
        self.deleted: set[int] = set()
        self.done = threading.Event()

    def has_done_all(self) -> bool:
        """Whether payloads were rewritten, inserted, and deleted that were there before."""
        return bool(self.rewritten and self.inserted and self.deleted - self.inserted)

    def run(self) -> None:
        chance = random.Random(5)
        for turn in itertools.count():
            if self.done.is_set():
                return
            one = chance.choice(sorted(self.there))
            if turn % 3 == 0:
                self.plain[one] = f"rewritten {turn}".encode()
                sealed = _sealed(self.deks[one // 2], self.plain[one], f"payload-{one}")
                self.bench.sql(
                    "UPDATE payloads SET ct = $2, iv = $3, tag = $4 WHERE id = $1",
                    one, b64(sealed.ct), b64(sealed.iv), sealed.tag,
                )  # fmt: skip
                self.rewritten.add(one)
            elif turn % 3 == 1:
                self.bench.sql("DELETE FROM payloads WHERE id = $1", one)
                self.there.discard(one)
                self.deleted.add(one)
            else:
                at = 10_000 + turn
                self.deks[at], self.plain[2 * at] = os.urandom(32), f"new {turn}".encode()
                wrap = _sealed(KEKS["v2"], self.deks[at], WRAP_AAD)
                self.bench.sql("INSERT INTO deks VALUES ($1, $2, 'v2')", at, wrap.joined)
                sealed = _sealed(self.deks[at], self.plain[2 * at], f"payload-{2 * at}")
                self.bench.sql(
                    "INSERT INTO payloads VALUES ($1, $2, $3, $4, $5)",
                    2 * at, at, b64(sealed.ct), b64(sealed.iv), sealed.tag,
                )  # fmt: skip
                self.inserted.add(2 * at)


def _sealed(key: bytes, plain: bytes, aad: str) -> Sealed:
    iv = os.urandom(12)
    raw = AESGCM(key).encrypt(iv, plain, aad.encode())
    return Sealed(iv, raw[:-16], raw[-16:])


def test_killed_and_resumed_beside_a_live_application(bench: Workbench) -> None:
    """No key and no payload is lost; what verify tells of payloads is what the application did to them."""
    target = BYTES.replace('untouched = ["*"]\n', "")
    bench.job(target, LAYOUTS + PAYLOADS + "[pace]\nbatch_size = 10\nshards = 1\n" + UNYIELDING)
    deks = dict(enumerate(data_keys(2_500)))
    bench.sql("CREATE TABLE deks (id int PRIMARY KEY, wrapped_dek bytea, mek_version text)")
    rows = [(at, _sealed(KEY_V1, dek, WRAP_AAD).joined, "v1") for at, dek in deks.items()]
    bench.insert("deks", ["id", "wrapped_dek", "mek_version"], rows)
    made = payloads(bench, list(deks.values()))
    application = Application(bench, deks, {i: plain for i, _, plain in made})
    arguments = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target"]
    for limit in (2_400, 2_200):
        # 25 s of work, of which these are three
        with bench.started(*arguments, "--max-rate", "100") as process:
            wait_while(process, lambda: _kept_fingerprint(bench))
            if not application.ident:
                application.start()
            wait_while(process, partial(_fewer, bench, limit))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        arguments = ["resume"]
    wait_for(application.has_done_all)
    resumed = bench.rewrap("resume", "--json")
    application.done.set()
    application.join()
    assert resumed.code == 0, resumed.err
    found = bench.rewrap("verify", "--deep", "--json", KEY_V1="")
    assert found.code == 0, found.out
    told = found.event("untouched")
    gone = application.deleted - application.inserted
    assert told["changed"] == len(application.rewritten - application.deleted)
    assert told["deleted"] == len(gone)
    assert told["inserted"] == len(application.inserted)
    assert told["unchanged"] == len(made) - len(gone) - told["changed"]
    stored = bench.sql("SELECT id, wrapped_dek, mek_version FROM deks ORDER BY id")
    keys = unwrapped([(r["mek_version"], _cut(r["wrapped_dek"])) for r in stored])
    assert dict(zip([r["id"] for r in stored], keys, strict=True)) == deks
    by_id = dict(zip([r["id"] for r in stored], keys, strict=True))
    assert opened(bench, by_id) == [
        application.plain[r["id"]] for r in bench.sql("SELECT id FROM payloads ORDER BY id")
    ]


def _fewer(bench: Workbench, limit: int) -> bool:
    """Whether fewer keys than so many are under the old version."""
    return bool(bench.value("SELECT count(*) < $1 FROM deks WHERE mek_version = 'v1'", limit))


def _kept_fingerprint(bench: Workbench) -> bool:
    """Whether the fingerprint is taken: what is written from then on is told."""
    if not bench.ledger.exists():
        return False
    with sqlite3.connect(f"file:{bench.ledger}?mode=ro", uri=True) as ledger:
        try:
            return bool(ledger.execute("SELECT count(*) FROM rewrap_fingerprint").fetchone()[0])
        except sqlite3.OperationalError:
            return False
