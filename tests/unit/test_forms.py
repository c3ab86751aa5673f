"""Which changes of layout a job may ask for: those in which no value can be taken for one of the other."""

from __future__ import annotations

import pytest

from rewrap.errors import JobError
from rewrap.job import Job

JOB = """
name = "forms"
[stores.main]
kind = "postgres"
url = "postgresql://localhost/none"
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.token]
marker = "{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "secretbox"
[layouts.same]
marker = "{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.longer]
marker = "{version}:gcm:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.gcm]
marker = "gcm:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.lookalike]
marker = "{version}/"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.bare]
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.constant]
marker = "enc:"
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.under]
marker = "enc:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
[layouts.raw]
encoding = "raw"
cipher = "aes-256-gcm"
[layouts.raw-marked]
marker = "{version}:"
version = "v[0-9]+"
encoding = "raw"
cipher = "aes-256-gcm"
[layouts.raw-telling]
marker = "gcm:{version}:"
version = "v[0-9]+"
encoding = "raw"
cipher = "aes-256-gcm"
[[targets]]
table = "notes"
fields = [FIELD]
"""


def parsed(old: str, new: str, more: str = "", field: str = "") -> Job:
    entry = f'{{ column = "body", layout = "{old}", to_layout = "{new}"{field} }}'
    return Job.parse(JOB.replace("FIELD", entry) + more, environ={})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("token", "gcm"),
        ("gcm", "token"),
        ("token", "bare"),
        ("bare", "token"),
        ("bare", "constant"),
        ("constant", "bare"),
        ("bare", "gcm"),
        ("constant", "under"),
        ("raw", "raw-telling"),
        ("raw-telling", "raw"),
        ("token", "token"),
    ],
)
def test_layouts_that_can_be_told_apart_may_change(old: str, new: str) -> None:
    """By their markers, by their encoding, or by opening what has neither."""
    entry = parsed(old, new).targets[0].fields[0]
    assert (entry.layout, entry.to_layout) == (old, new)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("token", "same", 'values under "v1" in layout "token" begin like those under "v1" in layout "same"'),
        ("token", "longer", 'values under "v1" in layout "token" begin like those under "v1"'),
        ("longer", "token", 'values under "v1" in layout "longer" begin like those under "v1"'),
        ("bare", "lookalike", 'values in layout "bare", which name no version, may begin like those'),
        ("lookalike", "bare", 'values in layout "bare", which name no version, may begin like those'),
        ("rails", "token", 'values in layout "rails" say beside the ciphertext how'),
        ("rails", "gcm", 'values in layout "rails" say beside the ciphertext how'),
        ("rails", "fernet", 'values in layout "rails" say beside the ciphertext how'),
        ("raw", "raw-marked", 'values in layout "raw", which name no version, may begin like those'),
        ("token", "raw", 'layout "token" stores text, and layout "raw" bytes'),
    ],
)
def test_layouts_that_could_be_mistaken_for_each_other_are_refused(old: str, new: str, says: str) -> None:
    """The job file is refused, with the field, the reason and what to do."""
    with pytest.raises(JobError) as caught:
        parsed(old, new)
    assert caught.value.message.startswith("job file rewrap.toml: targets[0].fields[0].to_layout: ")
    assert says in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_version_apart_does_not_tell_the_layout() -> None:
    """Both layouts would be known by the same column: refused."""
    with pytest.raises(JobError, match="begin like those"):
        parsed("bare", "constant", field=', version = { column = "key_version" }')


def test_there_is_nothing_unmarked_where_nothing_is_marked() -> None:
    """unmarked = "reseal" speaks of a marker that is missing: refused where there never is one."""
    for old, new in (("bare", "bare"), ("bare", "gcm"), ("gcm", "bare"), ("constant", "constant")):
        with pytest.raises(JobError, match=r"targets\[0\]\.unmarked") as caught:
            parsed(old, new, 'unmarked = "reseal"\n')
        assert caught.value.hint
    assert parsed("token", "gcm", 'unmarked = "reseal"\n').targets[0].unmarked == "reseal"


def test_plaintext_is_not_adopted_under_a_cipher_without_authentication() -> None:
    """Any text of the right length opens there: unmarked = "reseal" would take plaintext for a value."""
    more = """unmarked = "reseal"
[layouts.counted]
marker = "ctr:{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-ctr"
plaintext = "utf8"
"""
    for old, new in (("counted", "counted"), ("counted", "gcm"), ("gcm", "counted")):
        with pytest.raises(JobError, match="without authentication") as caught:
            parsed(old, new, more)
        assert caught.value.hint
        assert parsed(old, new, more.replace("reseal", "count")).targets[0].unmarked == "count"


def test_the_new_version_only_has_to_fit_the_new_layout() -> None:
    """The old layout never carries it; and the old version need not fit the new one."""
    job = Job.parse(
        JOB.replace("FIELD", '{ column = "body", layout = "token", to_layout = "gcm" }')
        .replace("keys.versions.v2", 'keys.versions."2026-11"')
        .replace(
            'marker = "gcm:{version}:"\nversion = "v[0-9]+"',
            'marker = "gcm:{version}:"\nversion = "2[0-9-]+"',
        ),
        environ={},
    )
    assert job.resolve_from("v1", "2026-11") == ("v1",)
    with pytest.raises(JobError, match='version "v1" does not fit'):
        job.resolve_from("2026-11", "v1")
