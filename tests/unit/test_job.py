"""Job files: what is read from them, what is refused and how it is said, and what a job's digest covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewrap.errors import JobError, RewrapError, UsageError
from rewrap.job import Job

ENVIRON = {"DATABASE_URL": "postgresql://app:canary-password@db:5432/app", "HOST": "db", "SECRET": "s3cret"}

JOB = """
name = "orders"

[stores.main]
kind = "postgres"
url = "${DATABASE_URL}"

[keys.versions.v1]
material = "env:KEY_V1"

[keys.versions.v2]
material = "file:v2.key"
encoding = "raw"

[layouts.bound]
like = "libsodium-token"
cipher = "aes-256-gcm"
aad = "{account_id}"

[[targets]]
table = "notes"
fields = [{ column = "body", layout = "libsodium-token" }, { column = "title", layout = "bound" }]

[[targets]]
table = "sales.orders"
key = "order_id"
fields = [{ column = "address", layout = "bound" }]

[pace]
batch_size = 500

[limits]
max_quarantine = 7
"""


def parsed(text: str = JOB, **environ: str) -> Job:
    return Job.parse(text, path="folder/orders.toml", environ={**ENVIRON, **environ})


def changed(old: str, new: str) -> str:
    assert old in JOB
    return JOB.replace(old, new, 1)


def refusal(text: str, **environ: str) -> RewrapError:
    """The error of a job file; its message names the file, and it has a hint and exit code 2."""
    with pytest.raises(JobError) as caught:
        parsed(text, **environ)
    error = caught.value
    assert error.message.startswith("job file folder/orders.toml: ")
    assert error.hint
    assert error.exit_code == 2
    return error


# what is read


def test_job_is_read_as_it_is_written() -> None:
    """Every section arrives where the engine looks for it, and what is left out has its default."""
    job = parsed()
    assert job.name == "orders"
    assert job.postgres.url == ENVIRON["DATABASE_URL"]
    assert (job.postgres.guard_schema, job.postgres.password) == ("rewrap", None)
    assert list(job.keys.versions) == ["v1", "v2"]
    assert (job.keys.versions["v1"].encoding, job.keys.versions["v2"].encoding) == ("hex", "raw")
    assert [(target.table, target.key) for target in job.targets] == [
        ("notes", None),
        ("sales.orders", ["order_id"]),
    ]
    assert [entry.column for entry in job.targets[0].fields] == ["body", "title"]
    assert (job.pace.batch_size, job.pace.shards) == (500, 4)
    assert job.limits.max_quarantine == 7
    assert job.key_lengths == {32}
    assert job.folder == Path("folder")


def test_layout_like_another_keeps_what_it_does_not_change() -> None:
    """`like` takes marker, version and encoding over; the cipher and the associated data are its own."""
    layout = parsed().layout("bound")
    assert layout.prefix_of("v7") == "v7:"
    assert layout.cipher_name == "aes-256-gcm"
    assert layout.aad is not None
    assert layout.aad.columns == ("account_id",)


def test_file_is_read_and_relative_paths_start_at_it(tmp_path: Path) -> None:
    """A job knows its own folder, where ledger and key files are looked for."""
    path = tmp_path / "orders.toml"
    path.write_text(JOB)
    job = Job.load(path, ENVIRON)
    assert (job.path, job.folder) == (path, tmp_path)


# substitution


def test_variable_is_put_in_wherever_a_string_stands() -> None:
    """`${NAME}` works in part of a string, more than once, and inside lists of tables."""
    text = changed("${DATABASE_URL}", "postgresql://${HOST}/${NAME}").replace('"body"', '"${COLUMN}"')
    job = parsed(text, NAME="app", COLUMN="body")
    assert job.postgres.url == "postgresql://db/app"
    assert job.targets[0].fields[0].column == "body"


def test_what_a_variable_holds_is_not_read_again() -> None:
    """A `${` inside a variable's value is text: a password may hold one."""
    url = "postgresql://app:${SECRET}@db/app"
    assert parsed(DATABASE_URL=url).postgres.url == url


def test_unset_variable_is_named_with_its_place() -> None:
    """The message says which variable, and which field asks for it."""
    error = refusal(changed("${DATABASE_URL}", "${ABSENT}"))
    assert "stores.main.url: environment variable ABSENT is not set" in error.message
    assert "set ABSENT" in (error.hint or "")


def test_key_reference_is_never_substituted() -> None:
    """A key comes from one named place; `${…}` in its reference would build that name from another."""
    assert "keys.versions.v1.material" in refusal(changed("env:KEY_V1", "${SECRET}")).message
    assert (
        parsed(changed("file:v2.key", "file:${HOST}.key")).keys.versions["v2"].material == "file:${HOST}.key"
    )


# what is refused

REFUSED = {
    "unknown field at the top": (
        'name = "orders"',
        'name = "orders"\nnom = 1',
        "nom: is not a field",
        "name, stores",
    ),
    "unknown field of a store": (
        'kind = "postgres"',
        'kind = "postgres"\nhost = 1',
        "stores.main.host",
        "kind, url",
    ),
    "unknown field of a key": ('encoding = "raw"', "algorithm = 1", "keys.versions.v2.algorithm", "material"),
    "unknown field of a layout": (
        'like = "lib',
        'nonce = 1\nlike = "lib',
        "layouts.bound.nonce",
        "like, marker",
    ),
    "unknown field of a target": (
        'key = "order_id"',
        "primary = 1",
        "targets[1].primary",
        "table, container, key, fields",
    ),
    "unknown field of a field": (
        'column = "address"',
        "colum = 1",
        "targets[1].fields[0].colum",
        "column, layout",
    ),
    "unknown field of the pace": ("batch_size = 500", "batchsize = 1", "pace.batchsize", "batch_size"),
    "unknown field of the limits": ("max_quarantine = 7", "max_bad = 1", "limits.max_bad", "max_quarantine"),
    "missing url": ('url = "${DATABASE_URL}"', "", "stores.main.url: is missing", "docs/job-file.md"),
    "empty url": ("${DATABASE_URL}", "", "stores.main.url: is empty", "docs/job-file.md"),
    "another database": ('kind = "postgres"', 'kind = "mysql"', "stores.main.kind", "docs/job-file.md"),
    "two stores": (
        "[keys.versions.v1]",
        '[stores.other]\nkind = "postgres"\nurl = "postgresql://h/d"\n[keys.versions.v1]',
        "targets[0].store: is missing: the job has more than one store",
        "stores are main, other",
    ),
    "number as text": ("batch_size = 500", 'batch_size = "500"', "pace.batch_size", "docs/job-file.md"),
    "number out of range": ("batch_size = 500", "batch_size = 0", "pace.batch_size", "docs/job-file.md"),
    "name with a slash": ('"orders"', '"a/b"', "name: ", "docs/job-file.md"),
    "unknown encoding": (
        'encoding = "raw"',
        'encoding = "ascii"',
        "keys.versions.v2.encoding",
        "hex, base64, raw, utf8, pem",
    ),
    "unknown built-in layout": (
        'like = "libsodium-token"',
        'like = "x"',
        "layouts.bound.like",
        "libsodium-token",
    ),
    "unknown cipher": ("aes-256-gcm", "rot13", "layouts.bound", "docs/layouts.md"),
    "incomplete layout": (
        'like = "libsodium-token"\n',
        "",
        "layouts.bound.encoding: is missing",
        "docs/layouts.md",
    ),
    "marker without an end": (
        'like = "lib',
        'marker = "v{version}"\nlike = "lib',
        "ends at the version",
        "docs/",
    ),
    "unknown layout": (
        'layout = "bound" }]',
        'layout = "b" }]',
        "targets[0].fields[1].layout",
        "known: bound",
    ),
    "table twice": (
        '"sales.orders"',
        '"notes"',
        'targets[1].table: table "notes" is named twice',
        "one target",
    ),
    "column twice": (
        'column = "title"',
        'column = "body"',
        "targets[0].fields: a column is named twice",
        "once",
    ),
    "key as a field": (
        'key = "order_id"',
        'key = "address"',
        'column "address" is the key',
        "cannot be the key",
    ),
    "aad from an encrypted column": (
        "{account_id}",
        "{address}",
        'aad names the encrypted column "address"',
        "does not rewrite",
    ),
    "unknown store of a target": (
        'key = "order_id"',
        'store = "other"',
        "targets[1].store",
        "stores are main",
    ),
    "no fields": (
        'fields = [{ column = "address", layout = "bound" }]',
        "fields = []",
        "targets[1].fields: is empty",
        "docs/job-file.md",
    ),
    "bad TOML": ('name = "orders"', "name = orders", "line 2", "not valid TOML"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistake_is_named_by_its_toml_path(mistake: str) -> None:
    """The first thing wrong is named by its place, and the hint says what could stand there."""
    old, new, message, hint = REFUSED[mistake]
    error = refusal(changed(old, new))
    assert message in error.message
    assert hint in (error.hint or "")


def test_more_mistakes_are_counted() -> None:
    """One line names the first mistake and says that there are others."""
    error = refusal(changed("batch_size = 500", "batchsize = 1\nspeed = 2"))
    assert "(and 1 more)" in error.message


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, a folder and a file of bytes each have an error and a hint."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.toml", ".", "bytes.toml"):
        with pytest.raises(JobError) as caught:
            Job.load(tmp_path / name, ENVIRON)
        assert caught.value.message.startswith(f"job file {tmp_path / name}")
        assert caught.value.hint


# secrets


@pytest.mark.parametrize(
    "material", ["00" * 32, "A" * 43 + "=", "hex:" + "00" * 32, "env:", "env:A B", "env:KEY_V1 00ff", "file:"]
)
def test_key_is_never_taken_from_the_file_nor_repeated(material: str) -> None:
    """What is not `env:NAME` or `file:PATH` may be a key, and does not come back in the message."""
    error = refusal(changed("env:KEY_V1", material))
    assert "keys.versions.v1.material" in error.message
    assert "a key itself never stands in a job file" in error.message
    if len(material) > 6:
        assert material not in error.message + (error.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:s3same@db/app",
        "postgresql://app:s3same@${HOST}/app",
        "postgresql://app:s3same${SECRET}@db/app",
        "postgresql://db/app?user=app&password=s3same",
        "postgresql://${HOST}/app?password=s3same",
        "postgresql://${HOST}/app?PASSWORD=s3same&x=${SECRET}",
        "postgresql://db/app?sslpassword=s3same",
    ],
)
def test_password_in_the_file_is_refused_and_not_repeated(url: str) -> None:
    """A password belongs into a variable or a file of its own, wherever in the URL it stands."""
    error = refusal(changed("${DATABASE_URL}", url))
    assert "stores.main.url: a password is written in the URL" in error.message
    assert "s3same" not in error.message + (error.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        "${DATABASE_URL}",
        "postgresql://app@db:5432/app",
        "postgresql://app:${SECRET}@db/app",
        "postgresql://app:@db/app",
        "postgresql://db/app?password=${SECRET}",
        "postgresql:///app?host=/run/postgresql&application_name=a@b:c",
    ],
)
def test_url_without_a_written_password_is_taken(url: str) -> None:
    """A whole variable in the password's place is how it should be."""
    assert parsed(changed("${DATABASE_URL}", url)).postgres.url


def test_repr_shows_no_password() -> None:
    """A job in a log or a traceback does not show the URL that its variable held."""
    job = parsed()
    for shown in (repr(job), str(job), repr(job.postgres), f"{job.stores}"):
        assert "canary-password" not in shown


# the digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch_size = 500", "batch_size = 50\nshards = 1"),
        ("max_quarantine = 7", "max_quarantine = 0\ndrain_s = 1.0"),
        ('kind = "postgres"', 'kind = "postgres"\nguard_schema = "other"\nlock_timeout_ms = 10'),
        ("${DATABASE_URL}", "postgresql://elsewhere/app"),
        ('key = "order_id"', 'key = "order_id"\nacknowledge = ["triggers"]'),
        ('name = "orders"', '# a remark\nname  =  "orders"'),
        ('material = "env:KEY_V1"', 'material = "env:KEY_V1"\nencoding = "hex"'),
    ],
    ids=["pace", "limits", "connection", "address", "acknowledgement", "remark", "default spelt out"],
)
def test_digest_is_the_same_where_cursors_still_hold(old: str, new: str) -> None:
    """Pace, limits and where the database is may change in the middle of a rotation."""
    assert parsed(changed(old, new)).digest == parsed().digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"orders"', '"invoices"'),
        ('table = "notes"', 'table = "remarks"'),
        ('key = "order_id"', 'key = "number"'),
        ('column = "address"', 'column = "city"'),
        ('column = "address", layout = "bound"', 'column = "address", layout = "libsodium-token"'),
        ('key = "order_id"', 'key = "order_id"\nunmarked = "reseal"'),
        ("{account_id}", "{customer_id}"),
        ("env:KEY_V1", "env:OTHER"),
        ("[keys.versions.v2]", "[keys.versions.v3]"),
    ],
    ids=["name", "table", "key", "column", "layout", "unmarked", "aad", "material", "version"],
)
def test_digest_changes_with_what_a_cursor_depends_on(old: str, new: str) -> None:
    """Targets, layouts and keys are what a checkpoint was made for."""
    assert parsed(changed(old, new)).digest != parsed().digest


def test_digest_does_not_depend_on_the_batch_size_option() -> None:
    """`--batch-size` on resume finds the run it began without."""
    job = parsed()
    faster = job.with_pace(batch_size=9)
    assert (faster.pace.batch_size, faster.digest) == (9, job.digest)
    assert faster.layout("bound") is job.layout("bound")
    assert faster.path == job.path


def test_digest_is_the_same_on_every_machine() -> None:
    """It is compared across processes and upgrades: only a change of its meaning may change it."""
    assert parsed().digest == "fca66a3d22dfdeed43bbe6627ff26f32d1f6c9e4545a7d41db8ee3713fbea514"


# versions of a run


def three_versions() -> Job:
    return parsed(changed("[layouts.bound]", '[keys.versions.v3]\nmaterial = "env:K3"\n[layouts.bound]'))


@pytest.mark.parametrize(
    ("spec", "versions"),
    [
        ("v1", ("v1",)),
        ("v1,v3", ("v1", "v3")),
        (" v3 , v1 ,", ("v3", "v1")),
        ("v1,v1", ("v1",)),
    ],
)
def test_from_names_one_version_or_several(spec: str, versions: tuple[str, ...]) -> None:
    """Several are separated by commas, and each counts once."""
    assert three_versions().resolve_from(spec, "v2") == versions


@pytest.mark.parametrize(
    ("spec", "to_version", "message"),
    [
        ("v9", "v2", 'no key version "v9"'),
        ("v1", "v9", 'no key version "v9"'),
        ("v2", "v2", 'both name "v2"'),
        ("v1,v2", "v2", 'both name "v2"'),
        ("", "v2", "names no version"),
        (" , ", "v2", "names no version"),
    ],
)
def test_versions_that_make_no_rotation_are_refused(spec: str, to_version: str, message: str) -> None:
    """An unknown version, none at all, or the new one among the old."""
    with pytest.raises(UsageError, match=message) as caught:
        three_versions().resolve_from(spec, to_version)
    assert caught.value.hint


def test_version_that_its_layout_cannot_write_is_refused() -> None:
    """A version outside the layout's pattern would be sealed and never be recognised again."""
    job = parsed(changed("[keys.versions.v2]", "[keys.versions.2024]"))
    with pytest.raises(JobError, match="2024") as caught:
        job.resolve_from("v1", "2024")
    assert "layouts.libsodium-token.version" in (caught.value.hint or "")


VAULT_JOB = """
name = "deks"
[stores.main]
kind = "postgres"
url = "${DATABASE_URL}"
[keys]
provider = "${PROVIDER:-akv}"
vault = "${VAULT:-}"
name = "mek"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.dek-akv]
encoding = "base64"
cipher = "rsa-oaep-256"
[layouts.dek-env]
encoding = "base64"
cipher = "aes-256-gcm"
[[targets]]
table = "deks"
fields = [{ column = "wrapped", layout = "dek-${PROVIDER:-akv}", version = { column = "mek" } }]
"""

IN_A_VAULT = {"DATABASE_URL": "postgresql://h/d", "VAULT": "https://prod-eu.vault.azure.net/"}


def test_one_file_serves_with_a_vault_and_without() -> None:
    """Each provider looks at its own fields; the versions of a vault are not those of the file."""
    there = Job.parse(VAULT_JOB, environ=IN_A_VAULT)
    assert (there.keys.provider, there.versions) == ("azure-key-vault", ())
    here = Job.parse(VAULT_JOB, environ={"DATABASE_URL": "postgresql://h/d", "PROVIDER": "env"})
    assert (here.keys.provider, here.versions) == ("local", ("v1", "v2"))
    assert there.digest != here.digest


def test_versions_found_in_a_vault_do_not_make_another_job() -> None:
    """A ledger belongs to vault and key; a new version is what a rotation is about."""
    job = Job.parse(VAULT_JOB, environ=IN_A_VAULT)
    more = job.with_versions(["a" * 32, "b" * 32])
    assert more.versions == ("a" * 32, "b" * 32)
    assert more.digest == job.digest == Job.parse(VAULT_JOB + "[pace]\nshards = 2", environ=IN_A_VAULT).digest
    for other in (
        VAULT_JOB.replace('"mek"\n', '"mek-2"\n', 1),
        VAULT_JOB.replace("${VAULT:-}", "https://b.c"),
    ):
        assert Job.parse(other, environ=IN_A_VAULT).digest != job.digest
    assert more.resolve_from("a" * 32, "b" * 32) == ("a" * 32,)


def test_pace_of_a_vault_is_not_the_identity_of_a_job() -> None:
    """It may change while a run is stopped."""
    paced = VAULT_JOB.replace(
        'name = "mek"', 'name = "mek"\nmax_calls_per_s = 5\nreopen = 0.5\nin_flight = 2'
    )
    assert Job.parse(paced, environ=IN_A_VAULT).digest == Job.parse(VAULT_JOB, environ=IN_A_VAULT).digest


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("${VAULT:-}", "", "keys.vault: is missing"),
        ("${VAULT:-}", "http://prod-eu.vault.azure.net", "keys.vault: is no address"),
        ("${VAULT:-}", "https://user@prod-eu.vault.azure.net", "keys.vault: is no address"),
        ("${VAULT:-}", "https://prod-eu.vault.azure.net/keys/mek", "keys.vault: is no address"),
        ('name = "mek"', "", "keys.name: is missing"),
        ('name = "mek"', 'name = "../x"', "keys.name: is no name"),
        ('name = "mek"', 'name = "mek"\nreopen = 0', "keys.reopen"),
        ('name = "mek"', 'name = "mek"\nmax_calls_per_s = 0', "keys.max_calls_per_s"),
        ('"rsa-oaep-256"', '"aes-256-gcm"', 'layout "dek-akv" needs the bytes of its key'),
        ("[[targets]]", "[indexes.i]\nkind = \"ciphersweet\"\n[[targets]]", "indexes: blind indexes"),
        ("akv}\"\nvault", "gcp}\"\nvault", "keys.provider"),
    ],
)  # fmt: skip
def test_a_mistake_about_a_vault_is_named(old: str, new: str, where: str) -> None:
    """By its place in the file."""
    assert old in VAULT_JOB
    with pytest.raises(JobError) as caught:
        Job.parse(VAULT_JOB.replace(old, new, 1), environ=IN_A_VAULT)
    assert where in caught.value.message
    assert caught.value.hint


def test_two_algorithms_in_a_vault_are_two_jobs() -> None:
    """A vault is asked for one."""
    other = VAULT_JOB.replace("fields = [", 'fields = [{ column = "b", layout = "dek-old" }, ').replace(
        "[layouts.dek-env]", '[layouts.dek-old]\nencoding = "hex"\ncipher = "rsa-oaep"\n[layouts.dek-env]'
    )
    with pytest.raises(JobError, match="and the first field under rsa-oaep"):
        Job.parse(other, environ=IN_A_VAULT)


COSMOS = """
name = "orders"
[stores.docs]
kind = "cosmos"
endpoint = "https://orders.documents.azure.com:443/"
database = "db"
guard_container = "rewrap"
[keys.versions.v1]
material = "env:K1"
[keys.versions.v2]
material = "env:K2"
[layouts.mek]
encoding = "base64"
cipher = "aes-256-gcm"
[deks.orders]
container = "deks"
wrapped = { column = "wrapped", layout = "mek", version = { column = "kid" } }
referenced_by = [{ container = "carts", column = "dekId" }]
[[targets]]
container = "orders"
fields = [{ column = "body", layout = "libsodium-token" }]
[[untouched]]
container = "notes"
"""


@pytest.mark.parametrize(
    "endpoint",
    [
        "AccountEndpoint=https://orders.documents.azure.com:443/;AccountKey=c2VjcmV0;",
        "orders.documents.azure.com",
        "ftp://orders.documents.azure.com",
        "https://",
        "https://:443/",
        "https://[c2VjcmV0/",
        "https://orders:c2VjcmV0/",
        "https://orders.documents.azure.com/;AccountKey=c2VjcmV0;",
    ],
)
def test_endpoint_that_is_no_url_is_refused_and_not_repeated(endpoint: str) -> None:
    """A whole connection string is easily pasted there: it holds the account's key."""
    written = COSMOS.replace("https://orders.documents.azure.com:443/", endpoint)
    for text, environ in (
        (written, {}),
        (COSMOS.replace("https://orders.documents.azure.com:443/", "${URL}"), {"URL": endpoint}),
    ):
        with pytest.raises(JobError) as caught:
            Job.parse(text, environ=environ)
        assert "stores.docs.endpoint: is no URL" in caught.value.message
        told = f"{caught.value.message} {caught.value.hint} {caught.value!r}"
        assert "c2VjcmV0" not in told
        assert "AccountKey" not in told


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8081", "https://[::1]:8081/", "https://db.example/"])
def test_endpoint_is_a_url_with_a_host(endpoint: str) -> None:
    """An emulator's too."""
    job = Job.parse(COSMOS.replace("https://orders.documents.azure.com:443/", endpoint), environ={})
    assert job.cosmos.endpoint == endpoint


@pytest.mark.parametrize("name", ["a/b", "a\\b", "a?b", "a#b", ".", "..", "../other"])
@pytest.mark.parametrize(
    ("written", "where"),
    [
        ('database = "db"', "stores.docs.database"),
        ('guard_container = "rewrap"', "stores.docs.guard_container"),
        ('container = "deks"', "deks.orders.container"),
        ('container = "carts"', "deks.orders.referenced_by[0].container"),
        ('container = "orders"', "targets[0].container"),
        ('container = "notes"', "untouched[0].container"),
    ],
)
def test_name_that_leads_elsewhere_is_refused(written: str, where: str, name: str) -> None:
    """Such a name would be another path of the account's."""
    field = written.partition(" = ")[0]
    assert COSMOS.count(written) == 1
    with pytest.raises(JobError) as caught:
        Job.parse(COSMOS.replace(written, f"{field} = '{name}'"), environ={})
    assert f"{where}: is no name of a" in caught.value.message
