"""`rewrap discover`: finds ciphertext in a zoo of columns, tells it from the rest, and shows no value."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap, aes_key_wrap_with_padding

from rewrap.job import Job
from tests.support.values import KEY_V1, KEYS, aead, box, sealed_bytes
from tests.support.workbench import Result, Workbench

ROWS = 60
RANDOM = random.Random(20261121)
SECRET = "canary-plaintext"
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "it",
    "rains",
    "in",
    "the",
    "old",
    "town",
    "by",
    "the",
    "sea",
]


def sentence(n: int) -> str:
    return " ".join(RANDOM.choices(WORDS, k=6 + n % 30))


def gcm(n: int) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(KEY_V1).encrypt(nonce, f"{SECRET} {n}".encode() * (1 + n % 4), None)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def in_one_piece(make: Callable[[], str]) -> str:
    """Such a text without two hyphens in a row: one in some 700 has them, and passes for two pieces."""
    return next(text for text in iter(make, "") if "--" not in text)


def token(parts: int, header: dict[str, str]) -> str:
    head = b64url(json.dumps(header).encode())
    return ".".join([head, *(b64url(os.urandom(40)) for _ in range(parts - 1))])


def rails(n: int) -> str:
    head = {"iv": b64(os.urandom(12)), "at": b64(os.urandom(16))}
    return json.dumps({"p": b64(os.urandom(20 + n % 9)), "h": head})


def laravel(n: int) -> str:
    return b64(json.dumps({"iv": b64(os.urandom(16)), "value": b64(gcm(n)), "mac": "0" * 64}).encode())


def letters() -> str:
    return "".join(RANDOM.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLM23456789", k=44))


def argon2() -> str:
    return f"$argon2id$v=19$m=65536,t=3,p=4${b64(os.urandom(16))}${b64(os.urandom(32))}"


def three(*sizes: int) -> str:
    return "--".join(b64(os.urandom(size)) for size in sizes)


FERNET = Fernet(base64.urlsafe_b64encode(KEY_V1))

Make = Callable[[int], Any]

SEALED: dict[str, tuple[str, Make, str]] = {
    "libsodium": ("text", lambda n: box(f"{SECRET} {n}"), "{version}:"),
    "two_axes": ("text", lambda n: in_one_piece(lambda: f"a1.k7:{b64url(gcm(n))}"), "a1.k{version}:"),
    "prefixed": ("text", lambda n: f"enc:v{1 + n % 2}:{b64(gcm(n))}", "enc:{version}:"),
    "vault": ("varchar(400)", lambda n: f"vault:v3:{b64(gcm(n))}", "vault:{version}:"),
    "sentry": ("text", lambda n: f"enc:fernet:key1:{FERNET.encrypt(SECRET.encode()).decode()}", ""),
    "fernet": ("text", lambda n: FERNET.encrypt(SECRET.encode()).decode(), ""),
    "jwe": ("text", lambda n: token(5, {"alg": "dir", "enc": "A256GCM", "kid": "k1"}), ""),
    "rails": ("text", rails, ""),
    "laravel": (
        "text",
        laravel,
        "",
    ),
    "cloak47": ("text", lambda n: f"v1.aesgcm256.0a1b2c3d.{b64url(os.urandom(12))}.{b64url(gcm(n))}", ""),
    "grafana": ("text", lambda n: f"#{b64(b'dek-id')}#{b64(gcm(n))}", ""),
    "encryptor": ("text", lambda n: three(30, 12, 16), ""),
    "bare_base64": ("text", lambda n: b64(gcm(n)), ""),
    "bare_url": ("text", lambda n: b64url(gcm(n)), ""),
    "bare_hex": ("text", lambda n: gcm(n).hex(), ""),
    "bare_bytes": ("bytea", gcm, ""),
    "marked_bytes": ("bytea", lambda n: sealed_bytes(f"{SECRET} {n}"), "{version}:"),
    "tink": ("bytea", lambda n: b"\x01\x0a\x0b\x0c\x0d" + gcm(n), ""),
    "some": ("text", lambda n: box(SECRET) if n % 3 else sentence(n), "{version}:"),
    "capitals Name": ("text", lambda n: box(SECRET), "{version}:"),
}

OTHER: dict[str, tuple[str, Make, str]] = {
    "bcrypt": ("text", lambda n: "$2b$12$" + b64(os.urandom(40)).replace("=", "A")[:53], "hash"),
    "argon2": ("text", lambda n: argon2(), "hash"),
    "django": ("text", lambda n: f"pbkdf2_sha256$600000${b64(os.urandom(9))}${b64(os.urandom(32))}", "hash"),
    "sha256": ("text", lambda n: hashlib.sha256(str(n).encode()).hexdigest(), "hash"),
    "md5": ("varchar(32)", lambda n: hashlib.md5(str(n).encode()).hexdigest(), "hash"),
    "sha_base64": ("text", lambda n: b64(hashlib.sha256(str(n).encode()).digest()), "hash"),
    "sha_bytes": ("bytea", lambda n: hashlib.sha512(str(n).encode()).digest(), "hash"),
    "jwt": ("text", lambda n: token(3, {"alg": "RS256", "typ": "JWT"}), "token"),
    "api_key": ("text", lambda n: letters(), "token"),
    "session": ("text", lambda n: b64url(os.urandom(32)), "hash"),
    "uuid": ("text", lambda n: str(uuid.uuid4()), ""),
    "uuid_hex": ("text", lambda n: uuid.uuid4().hex, "hash"),
    "english": ("text", sentence, ""),
    "long_word": ("text", lambda n: "".join(RANDOM.choices(WORDS, k=12)), ""),
    "number": ("text", lambda n: str(10**40 + n), ""),
    "image": ("text", lambda n: b64(bytes.fromhex("89504e470d0a1a0a") + os.urandom(200)), ""),
    "data_url": ("text", lambda n: "data:image/png;base64," + b64(os.urandom(200)), ""),
    "picture": ("bytea", lambda n: b"\xff\xd8\xff\xe0" + os.urandom(200), ""),
    "zipped": ("bytea", lambda n: zlib.compress(os.urandom(100)), ""),
    "text_base64": ("text", lambda n: b64(sentence(n).encode() * 3), ""),
    "json_text": ("text", lambda n: json.dumps({"name": sentence(n)}), ""),
    "url": ("text", lambda n: f"https://example.org/{b64url(os.urandom(40))}", ""),
    "certificate": ("text", lambda n: "-----BEGIN CERTIFICATE-----\n" + b64(os.urandom(300)), ""),
    "ssh_key": ("text", lambda n: "ssh-ed25519 " + b64(os.urandom(51)), ""),
    "counted": ("text", lambda n: f"user:{n}:{sentence(n).replace(' ', '-')}", ""),
    "empty": ("text", lambda n: "", ""),
    "nulls": ("text", lambda n: None, ""),
}


def zoo(bench: Workbench, animals: dict[str, tuple[str, Make, str]], table: str = "zoo") -> None:
    columns = ", ".join(f'"{name}" {kind}' for name, (kind, _, _) in animals.items())
    bench.sql(f'CREATE TABLE "{table}" (id bigint PRIMARY KEY, {columns})')
    rows = [(n, *(make(n) for _, make, _ in animals.values())) for n in range(ROWS)]
    bench.insert(table, ["id", *animals], rows)


def found(ran: Result) -> dict[str, dict[str, Any]]:
    assert ran.code == 0, ran.err
    return {event["column"]: event for event in ran.events if event["type"] == "column_found"}


def assert_no_value_shown(bench: Workbench, ran: Result, table: str = "zoo") -> None:
    said = ran.out + ran.err
    for (row,) in bench.sql(f'SELECT row_to_json(t)::text FROM "{table}" t'):
        for value in json.loads(row).values():
            text = str(value or "")
            for start in range(0, max(1, len(text) - 24), 24):
                piece = text[start : start + 24]
                assert len(piece) < 24 or piece not in said, piece


def test_ciphertext_of_every_form_is_found(bench: Workbench) -> None:
    ""
    "Twenty ways to store ciphertext, each seen for what it is; no value is shown."
    ""
    zoo(bench, SEALED)
    ran = bench.rewrap("discover", bench.dsn, "--json")
    seen = found(ran)
    assert {name for name, one in seen.items() if one["likeness"] == "ciphertext"} == set(SEALED)
    assert {name: one["marker"] or "" for name, one in seen.items()} == {
        name: marker for name, (_, _, marker) in SEALED.items()
    }
    assert seen["prefixed"]["versions"] == {"v1": 30, "v2": 30}
    assert seen["two_axes"]["versions"] == {"7": 60}
    assert seen["some"]["share"] == round(40 / 60, 3)
    bare = ("bare_base64", "bare_url", "bare_hex", "bare_bytes")
    assert [seen[name]["encoding"] for name in bare] == ["base64", "base64url", "hex", "raw"]
    shown = bench.rewrap("discover", bench.dsn)
    for result in (ran, shown):
        assert_no_value_shown(bench, result)


def test_what_is_no_ciphertext_is_not_taken_for_it(bench: Workbench) -> None:
    """Hashes and tokens are called that; texts, images and ids are left out."""
    zoo(bench, OTHER)
    ran = bench.rewrap("discover", bench.dsn, "--json")
    seen = {name: one["likeness"] for name, one in found(ran).items()}
    assert seen == {name: likeness for name, (_, _, likeness) in OTHER.items() if likeness}
    assert ran.events[-1]["ciphertext"] == 0
    shown = bench.rewrap("discover", bench.dsn)
    assert "0 look like ciphertext" in shown.out
    for result in (ran, shown):
        assert_no_value_shown(bench, result)


@pytest.mark.parametrize("seed", range(5))
def test_short_tables_are_not_misjudged(bench: Workbench, seed: int) -> None:
    """With two rows a form still shows, and a lone value's head is not taken for a marker."""
    bench.sql("CREATE TABLE few (id int PRIMARY KEY, sealed text, lone text, words text)")
    bench.insert(
        "few",
        ["id", "sealed", "lone", "words"],
        [
            (1, box(SECRET), f"secret-name:v1:{b64(random.Random(seed).randbytes(40))}", sentence(seed)),
            (2, box(SECRET), None, sentence(9)),
        ],
    )
    ran = bench.rewrap("discover", bench.dsn, "--json")
    seen = found(ran)
    assert seen["sealed"]["marker"] == "{version}:"
    assert seen["lone"]["marker"] is None
    assert "words" not in seen
    assert "secret-name" not in ran.out + bench.rewrap("discover", bench.dsn).out


@pytest.mark.parametrize(
    "odd", ["repeat('[', 3000) || repeat(']', 3000)", "'{\"a\":' || repeat('9', 5000) || '}'"]
)
def test_a_document_beyond_measure_does_not_end_the_look(bench: Workbench, odd: str) -> None:
    """Nested 3,000 deep, or with a number of 5,000 digits: the other documents are looked into."""
    bench.sql(f"CREATE TABLE docs (id int PRIMARY KEY, d jsonb); INSERT INTO docs VALUES (0, ({odd})::jsonb)")
    rows = [(i, json.dumps({"ssn": box(f"{SECRET} {i}")})) for i in range(1, 21)]
    bench.sql(
        "INSERT INTO docs SELECT * FROM unnest($1::int[], $2::jsonb[])",
        [at for at, _ in rows],
        [text for _, text in rows],
    )
    ran = bench.rewrap("discover", bench.dsn, "--json")
    assert ran.code == 0, ran.err
    assert found(ran)["d.ssn"]["likeness"] == "ciphertext"


def test_a_head_that_few_values_share_is_not_shown(bench: Workbench) -> None:
    """A name before a key's version, twice among twenty, is data and no marker."""
    heads = [f"person{i}" for i in range(20)] + ["schmidt-hansen"] * 2
    bench.sql("CREATE TABLE s (id int PRIMARY KEY, body text)")
    bench.insert("s", ["id", "body"], [(i, f"{h}:k1:{b64(os.urandom(60))}") for i, h in enumerate(heads)])
    for form in ((), ("--json",)):
        assert "schmidt" not in bench.rewrap("discover", bench.dsn, *form).out


def test_documents_are_looked_into(bench: Workbench) -> None:
    """Leaves of jsonb are found by their paths, those of arrays too; a key that one row has is not shown."""
    bench.sql("CREATE TABLE patients (id int PRIMARY KEY, doc jsonb)")
    bench.insert(
        "patients",
        ["id", "doc"],
        [
            (
                n,
                json.dumps(
                    {
                        "patient": {"ssn": box(SECRET), "name": sentence(n)},
                        "cards": [{"number": box(SECRET), "kind": "visa"}, {"number": box(SECRET)}],
                        f"canary{n}": box(SECRET),
                    }
                ),
            )
            for n in range(20)
        ],
    )
    ran = bench.rewrap("discover", bench.dsn, "--json")
    assert set(found(ran)) == {"doc.patient.ssn", "doc.cards[*].number"}
    assert "canary" not in ran.out


def test_parts_beside_a_value_are_proposed(bench: Workbench) -> None:
    """Columns that hold the nonce, the tag and the version of another one are named with it, not alone."""
    bench.sql(
        "CREATE TABLE secrets (id int PRIMARY KEY, encrypted_token text, token_iv text, token_tag text, "
        "master_key_id text, other int)"
    )
    bench.insert(
        "secrets",
        ["id", "encrypted_token", "token_iv", "token_tag", "master_key_id"],
        [
            (n, *(b64(os.urandom(size)) for size in (20 + n % 7, 12, 16)), f"local/app:v{1 + n % 2}")
            for n in range(30)
        ],
    )
    seen = found(bench.rewrap("discover", bench.dsn, "--json"))
    assert set(seen) == {"encrypted_token"}
    assert seen["encrypted_token"]["parts"] == {
        "nonce": "token_iv", "tag": "token_tag", "version": "master_key_id",
    }  # fmt: skip
    assert seen["encrypted_token"]["versions"].keys() == {"v1", "v2"}


def test_what_is_not_looked_at_is_said(bench: Workbench) -> None:
    """Missing privileges, row-level security and types that are not looked into: each column by name."""
    bench.sql("CREATE TABLE open (id int PRIMARY KEY, body text, secret text, many text[])")
    bench.sql("CREATE TABLE ruled (id int PRIMARY KEY, body text)")
    bench.sql("ALTER TABLE ruled ENABLE ROW LEVEL SECURITY")
    bench.sql("CREATE SCHEMA closed; CREATE TABLE closed.inside (id int, body text)")
    role = "looker_" + urlsplit(bench.dsn).path.strip("/")
    bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        bench.sql(f"GRANT SELECT (id, body, many) ON open TO {role}; GRANT SELECT ON ruled TO {role}")
        parts = urlsplit(bench.dsn)
        url = urlunsplit(parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}"))
        ran = bench.rewrap("discover", url, "--json")
        assert ran.code == 0, ran.err
        skipped = {
            (event["table"], event["column"]): event["reason"]
            for event in ran.events
            if event["type"] == "column_skipped"
        }
        assert {f"{table}.{column}" for table, column in skipped} == {
            "open.secret", "open.many", "ruled.body", "closed.inside.body",
        }  # fmt: skip
        assert "row-level security" in skipped["ruled", "body"]
        shown = bench.rewrap("discover", url)
        assert "open.secret: this role lacks SELECT" in shown.out
        assert ":x@" not in shown.out
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")


ACCOUNTS = """
CREATE TABLE accounts (id int PRIMARY KEY, account_id int, secret text, plain text);
CREATE TABLE archive (account_key uuid PRIMARY KEY, body text);
"""


def filled(bench: Workbench) -> None:
    bench.notes([*(box(f"{SECRET} {n}") for n in range(30)), box("x", "v2")])
    bench.sql(ACCOUNTS)
    bench.insert(
        "accounts",
        ["id", "account_id", "secret", "plain"],
        [(n, n + 500, aead(SECRET, str(n + 500), "v1" if n % 2 else "v2"), sentence(n)) for n in range(40)],
    )
    bench.insert("archive", ["account_key", "body"], [(uuid.uuid4(), box(SECRET, "v1")) for _ in range(40)])


def test_keys_of_a_job_are_tried_on_everything(bench: Workbench) -> None:
    """What a layout opens is said, with the column it is bound to; what is in the job is said to be."""
    filled(bench)
    ran = bench.rewrap("discover", "rewrap.toml", "--json")
    seen = {(one["table"], one["column"]): one for one in ran.events if one["type"] == "column_found"}
    assert seen["notes", "body"]["in_job"]
    assert not seen["archive", "body"]["in_job"]
    opened = seen["archive", "body"]["opens"]
    (one,) = opened
    assert (one["layout"], one["version"], one["aad"]) == ("libsodium-token", "v1", None)
    bound = seen["accounts", "secret"]["opens"]
    assert {(one["layout"], one["version"]) for one in bound} == {("aead", "v1"), ("aead", "v2")}
    assert ran.events[-1]["ciphertext"] == 2
    shown = bench.rewrap("discover", "rewrap.toml")
    assert "libsodium-token under v1" in shown.out
    assert "in this job" in shown.out
    for result in (ran, shown):
        assert_no_value_shown(bench, result, "archive")
        assert not any(key.hex() in result.out + result.err for key in KEYS.values())


def test_what_opens_is_ciphertext_though_it_is_as_long_as_a_hash(bench: Workbench) -> None:
    """Four digits sealed are 32 bytes, as SHA-256 is: only a key tells, and is asked."""
    bench.sql("CREATE TABLE cards (id int PRIMARY KEY, pin text)")
    nonces = [os.urandom(12) for _ in range(20)]
    pins = [b64(nonce + AESGCM(KEY_V1).encrypt(nonce, b"1234", None)) for nonce in nonces]
    bench.insert("cards", ["id", "pin"], list(enumerate(pins)))
    bench.notes([box("one")])
    assert found(bench.rewrap("discover", bench.dsn, "--json"))["pin"]["likeness"] == "hash"
    seen = found(bench.rewrap("discover", "--json"))
    assert seen["pin"]["likeness"] == "ciphertext"
    assert seen["pin"]["opens"][0]["opened"] == 20


def test_wrapped_data_keys_are_found_by_unwrapping(bench: Workbench) -> None:
    """They have no nonce and no tag, and look like any random bytes: only their key-encryption key tells."""
    bench.sql("CREATE TABLE deks (id int PRIMARY KEY, dek text, odd text)")
    rows = [
        (
            n,
            b64(aes_key_wrap(KEY_V1, os.urandom(32))),
            aes_key_wrap_with_padding(KEY_V1, os.urandom(29)).hex(),
        )
        for n in range(20)
    ]
    bench.insert("deks", ["id", "dek", "odd"], rows)
    bench.notes([box("one")])
    seen = found(bench.rewrap("discover", "--json"))
    for column, cipher in (("dek", "aes-key-wrap"), ("odd", "aes-key-wrap-pad")):
        (opens,) = seen[column]["opens"]
        assert (opens["opened"], opens["version"], cipher in opens["layout"]) == (20, "v1", True)


def test_associated_data_are_found_by_trying(bench: Workbench) -> None:
    """Without a layout in the job, the cipher and the column that values are bound to are found."""
    filled(bench)
    text = (bench.folder / "rewrap.toml").read_text()
    begin, end = text.index("[layouts.aead]"), text.index("[[targets]]")
    (bench.folder / "rewrap.toml").write_text(text[:begin] + text[end:])
    ran = bench.rewrap("discover", "--json")
    (accounts,) = [event for event in ran.events if event.get("table") == "accounts" and "opens" in event]
    assert {one["aad"] for one in accounts["opens"]} == {"{account_id}"}
    assert "aes-256-gcm" in accounts["opens"][0]["layout"]


def test_written_job_loads_and_passes_check(bench: Workbench) -> None:
    """From a job with keys, the columns in no job become one for review, which check finds good."""
    filled(bench)
    ran = bench.rewrap("discover", "--write", "found.toml")
    assert ran.code == 0, ran.err
    job = Job.load(bench.folder / "found.toml", bench.environ)
    named = {(target.table, entry.column) for target in job.targets for entry in target.fields}
    assert named == {("accounts", "secret"), ("archive", "body")}
    checked = bench.rewrap("check", "found.toml", "--from", "v1", "--to", "v2", "--json")
    assert checked.code == 0, checked.out
    assert bench.rewrap("run", "found.toml", "--from", "v1", "--to", "v2").code == 0
    again = bench.rewrap("discover", "--write", "found.toml")
    assert again.code == 2
    assert "not overwritten" in again.err


def test_written_file_holds_no_value_and_no_password(bench: Workbench) -> None:
    """A draft says what looks like what, by markers and lengths alone."""
    filled(bench)
    zoo(bench, SEALED)
    assert bench.rewrap("discover", bench.dsn, "--write", "found.toml").code == 0
    text = (bench.folder / "found.toml").read_text()
    assert urlsplit(bench.dsn).password not in text
    for table in ("zoo", "accounts", "archive", "notes"):
        assert_no_value_shown(bench, Result(0, text, ""), table)
    # what cannot be rotated yet stands in comments, with the reason
    assert Job.load(bench.folder / "found.toml", bench.environ).targets
    assert "# zoo.laravel" in text
    assert "# zoo.vault" in text
    assert 'keys.provider = "vault-transit"' in text


@pytest.mark.parametrize("source", ["http://example.org/x", "no-such.toml"])
def test_what_cannot_be_looked_at_is_refused(bench: Workbench, source: str) -> None:
    ran = bench.rewrap("discover", source)
    assert ran.code in (1, 2)
    assert ran.err.startswith("error: ")


def test_large_table_is_sampled(bench: Workbench, tmp_path: Path) -> None:
    """Of a large table only some values are read, from across it."""
    bench.sql("CREATE TABLE big (id int PRIMARY KEY, body text)")
    values = [box(str(n)) for n in range(50)]
    bench.sql(
        "INSERT INTO big SELECT n, (ARRAY[" + ", ".join(f"'{v}'" for v in values) + "])[1 + n % 50] "
        "FROM generate_series(1, 40000) n; ANALYZE big"
    )
    (one,) = found(bench.rewrap("discover", bench.dsn, "--sample", "100", "--json")).values()
    assert one["sampled"] == 100


def test_each_kind_of_key_has_a_job_of_its_own(bench: Workbench) -> None:
    """Values of Fernet, Laravel and Rails share no key: one is the draft, the others stand in comments."""
    animals = {name: SEALED[name] for name in ("fernet", "laravel", "rails")}
    zoo(bench, animals)
    assert bench.rewrap("discover", bench.dsn, "--write", "found.toml").code == 0
    text = (bench.folder / "found.toml").read_text()
    job = Job.load(bench.folder / "found.toml", bench.environ)
    assert [entry.column for target in job.targets for entry in target.fields] == ["fernet"]
    assert {section.encoding for section in job.keys.versions.values()} == {"base64"}
    assert text.count("Another key: a job of its own") == 2
    assert "kdf" in text
    assert "APP_KEY" in text


def test_laravel_with_a_mac_is_not_gcm(bench: Workbench) -> None:
    """A document without a tag fits the layout with a MAC alone."""
    zoo(bench, {"laravel": SEALED["laravel"]})
    assert found(bench.rewrap("discover", bench.dsn, "--json"))["laravel"]["fits"] == ["laravel"]


def test_one_plaintext_value_is_not_rounded_away(bench: Workbench) -> None:
    """199 of 200 are not all."""
    bench.notes([*(box(f"n{n}") for n in range(199)), "plain words of somebody"])
    shown = bench.rewrap("discover", bench.dsn).out
    assert "99%" in shown
    assert "100%" not in shown


def test_without_a_job_the_hint_names_the_database(bench: Workbench) -> None:
    """DATABASE_URL is set, and no job there: what to type is said."""
    (bench.folder / "rewrap.toml").unlink()
    ran = bench.rewrap("discover")
    assert ran.code == 2
    assert 'rewrap discover "$DATABASE_URL"' in ran.err
    assert "job init" in ran.err
