"""A rotation of data keys in Postgres under a key in a vault: the whole program, as a user runs it."""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.proxy import forbidden, slowed_down
from tests.support.vault import VaultEmulator, VaultServer
from tests.support.workbench import Result, Workbench

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "azure-key-vault"
vault = "${{AZURE_KEYVAULT_URL}}"
name = "{name}"
{keys}
[layouts.wrapped]
encoding = "base64"
cipher = "rsa-oaep-256"
[pace]
batch_size = 8
[[targets]]
table = "deks"
fields = [{{ column = "wrapped_dek", layout = "wrapped", version = {{ column = "mek_version" }} }}]
"""

RECORDS = 24


@dataclass
class Deks:
    """A table of wrapped data keys, and the vault that they are wrapped in."""

    bench: Workbench
    vault: VaultServer
    name: str
    old: str
    new: str
    keys: dict[int, bytes]

    def job(self, keys: str = "") -> None:
        (self.bench.folder / "rewrap.toml").write_text(JOB.format(name=self.name, keys=keys))

    def rewrap(self, *arguments: str) -> Result:
        return self.bench.rewrap(*arguments, **self.vault.environ)

    def run(self, *arguments: str) -> Result:
        return self.rewrap(
            "run", "--from", self.old, "--to", self.new, "--allow-unseen-target", "--json", *arguments
        )

    @property
    def under(self) -> dict[str | None, int]:
        found = self.bench.sql("SELECT mek_version, count(*) FROM deks GROUP BY 1")
        return dict(found)

    def opens(self) -> None:
        """Every record opens to the data key that it was made of, under the version that it names."""
        rows = self.bench.sql("SELECT id, wrapped_dek, mek_version FROM deks ORDER BY id")
        for number, wrapped, version in rows:
            opened = self.vault.unwrap(self.name, version, base64.b64decode(wrapped))
            assert opened == self.keys[number]


@pytest.fixture
def deks(bench: Workbench, vault: VaultServer) -> Deks:
    name = vault.new_name()
    old = vault.create_version(name)
    made = {number: secrets.token_bytes(32) for number in range(RECORDS)}
    bench.sql(
        "CREATE TABLE deks (id bigint PRIMARY KEY, wrapped_dek text NOT NULL, mek_version text NOT NULL)"
    )
    rows = [
        (number, base64.b64encode(vault.wrap(name, old, key)).decode(), old) for number, key in made.items()
    ]
    bench.insert("deks", ["id", "wrapped_dek", "mek_version"], rows)
    new = vault.create_version(name)
    found = Deks(bench, vault, name, old, new, made)
    found.job()
    return found


def test_data_keys_are_wrapped_under_the_new_version(deks: Deks) -> None:
    """Every record is at the new version, and opens to what it held; the calls are told."""
    done = deks.run()
    assert done.code == 0, done.err
    assert deks.under == {deks.new: RECORDS}
    deks.opens()
    ended = done.event("run_ended")
    # each once under the old version and once under the new, and what the proof and the rehearsal took
    assert 2 * RECORDS <= ended["spent"]["vault_calls"] <= 4 * RECORDS + 10
    assert deks.rewrap("verify", "--deep").code == 0


def test_a_dry_run_needs_no_right_to_write_and_writes_nothing(deks: Deks) -> None:
    """Values are opened and wrapped as in a run; the table stays as it is."""
    before = deks.bench.sql("SELECT * FROM deks ORDER BY id")
    done = deks.run("--dry-run")
    assert done.code == 0, done.err
    assert deks.bench.sql("SELECT * FROM deks ORDER BY id") == before


def test_any_stands_for_every_enabled_version_of_the_vault(deks: Deks) -> None:
    """Versions that the job file does not name are found where they are."""
    done = deks.rewrap("run", "--from", "any", "--to", deks.new, "--allow-unseen-target", "--json")
    assert done.code == 0, done.err
    assert deks.under == {deks.new: RECORDS}


def test_a_version_of_the_vault_is_stale_and_any_other_is_foreign(deks: Deks) -> None:
    """Verify counts what the vault knows as stale, and what nobody knows apart."""
    deks.bench.sql("UPDATE deks SET mek_version = 'of-another-vault' WHERE id < 3")
    done = deks.rewrap("verify", "--to", deks.new, "--json")
    assert done.code == 3, done.err
    verdict = done.event("verdict")
    assert (verdict["stale"], verdict["other_version"]) == (RECORDS - 3, 3)


def test_verify_by_version_takes_no_right_to_unwrap(deks: Deks, vault_emulator: VaultEmulator) -> None:
    """A count by version reads the vault's list and the new public key; only --deep opens values."""
    assert deks.run().code == 0
    vault_emulator.permit("get", "list")
    assert deks.rewrap("verify", "--to", deks.new).code == 0
    refused = deks.rewrap("verify", "--to", deks.new, "--deep")
    assert refused.code == 10
    assert "keys/unwrapKey" in refused.err


def test_without_the_right_to_list_the_versions_named_are_known(
    deks: Deks, vault_emulator: VaultEmulator
) -> None:
    """A run names its versions itself; `any` cannot be asked for."""
    vault_emulator.permit("get", "unwrapKey")
    every = deks.rewrap("run", "--from", "any", "--to", deks.new)
    assert every.code == 10
    assert "keys/list" in every.err
    assert deks.run().code == 0
    assert deks.under == {deks.new: RECORDS}


def test_versions_that_nobody_lists_are_not_taken_for_none(
    deks: Deks, vault_emulator: VaultEmulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A record without a version, which only the old one opens: with no ledger and no right to list the
    versions, nobody can tell it from plaintext, and verify does not say complete."""
    assert deks.run().code == 0
    wrapped = base64.b64encode(deks.vault.wrap(deks.name, deks.old, secrets.token_bytes(32))).decode()
    deks.bench.sql("INSERT INTO deks VALUES (1000, $1, '')", wrapped)
    deks.bench = replace(deks.bench, folder=tmp_path_factory.mktemp("elsewhere"))
    deks.job()
    with_list = deks.rewrap("verify", "--to", deks.new, "--json")
    assert (with_list.code, with_list.event("verdict")["unmarked"]) == (3, 1)
    vault_emulator.permit("get", "unwrapKey", "wrapKey")
    found = deks.rewrap("verify", "--to", deks.new, "--deep", "--json")
    assert found.code == 3
    assert "may not have listed" in found.event("verdict")["reasons"][0]
    checked = deks.rewrap("check", "--from", deks.old, "--to", deks.new, "--json")
    assert "key-no-list" in {event["code"] for event in checked.events if event["type"] == "finding"}


def test_a_vault_that_throttles_and_then_refuses_stops_the_run(
    deks: Deks, vault_emulator: VaultEmulator
) -> None:
    """Exit 10, nothing put aside, and a later resume ends what was begun."""
    vault_emulator.proxy.add(slowed_down(1), "unwrapkey", skip=30, times=3)
    vault_emulator.proxy.add(forbidden(), "unwrapkey", skip=40)
    stopped = deks.run()
    assert stopped.code == 10, stopped.err
    assert "keys/unwrapKey" in stopped.err
    under = deks.under
    assert under[deks.old] > 0
    assert sum(under.values()) == RECORDS
    assert deks.rewrap("quarantine", "list", "--json").events == []
    vault_emulator.proxy.clear()
    deks.opens()
    done = deks.rewrap("resume")
    assert done.code == 0, done.err
    assert deks.under == {deks.new: RECORDS}
    deks.opens()


def test_a_version_that_is_disabled_on_the_way_stops_the_run(deks: Deks) -> None:
    """Before the first value: the old version is disabled too soon."""
    deks.vault.disable(deks.name, deks.old)
    stopped = deks.run()
    assert stopped.code == 10
    assert "is disabled" in stopped.err
    assert "az keyvault key set-attributes --vault-name … --name" in stopped.err
    assert deks.under == {deks.old: RECORDS}


def test_a_sample_of_new_values_is_opened_again(deks: Deks, vault_emulator: VaultEmulator) -> None:
    """With `reopen` fewer calls are made than values are written, and what was written opens all the same."""
    deks.job("reopen = 0.1")
    done = deks.run()
    assert done.code == 0, done.err
    again = done.event("run_ended")["spent"]["vault_calls"]
    deks.opens()
    assert again < 2 * RECORDS + 10


def checked(deks: Deks, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """What check finds of the keys, by version."""
    ran = deks.rewrap("check", "--json", *arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    for event in ran.events:
        if event["type"] == "finding" and event["subject"].startswith("key "):
            found.setdefault(event["subject"].removeprefix("key "), []).append(event)
    assert ran.events[-1]["type"] == "checked", ran.err
    return found


def graves(found: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(one["severity"], one["code"]) for one in found}


def test_check_has_the_vault_wrap_and_unwrap_under_each_version(
    deks: Deks, vault_emulator: VaultEmulator
) -> None:
    """In the vault itself: what was wrapped here proves neither a right nor that a version is enabled."""
    found = checked(deks, "--from", deks.old, "--to", deks.new)
    assert ("info", "key-unwraps") in graves(found[deks.old])
    assert ("info", "key-proven") in graves(found[deks.old])
    assert graves(found[deks.new]) == {("info", "key-unwraps"), ("warning", "key-unseen")}
    assert vault_emulator.proxy.counts()["wrapkey"] == 2
    assert deks.under == {deks.old: RECORDS}


def test_check_names_each_right_that_is_missing(deks: Deks, vault_emulator: VaultEmulator) -> None:
    """Not to unwrap stops a run; not to wrap does not, since rewrap wraps by itself."""
    versions = ("--from", deks.old, "--to", deks.new)
    vault_emulator.permit("get", "list", "unwrapKey")
    for found in checked(deks, *versions).values():
        assert ("warning", "key-no-wrap") in graves(found)
        assert not any(severity == "error" for severity, _ in graves(found))
    vault_emulator.permit("get", "list", "wrapKey")
    for found in checked(deks, *versions).values():
        (error,) = [one for one in found if one["severity"] == "error"]
        assert error["code"] == "key-no-unwrap"
        assert "keys/unwrapKey" in error["hint"]
    vault_emulator.permit("list", "unwrapKey")
    for found in checked(deks, *versions).values():
        assert graves(found) == {("error", "key-not-permitted")}
        assert "keys/get" in found[0]["hint"]


def test_check_names_a_version_that_is_disabled_or_out_of_its_dates(
    deks: Deks, vault_emulator: VaultEmulator
) -> None:
    """An expired version still unwraps, and nobody can wrap under it: bad for the new one."""
    past, future = int(time.time()) - 60, int(time.time()) + 86_400
    versions = ("--from", deks.old, "--to", deks.new)
    vault_emulator.service.version(deks.name, deks.old).change({"exp": past})
    vault_emulator.service.version(deks.name, deks.new).change({"nbf": future})
    found = checked(deks, *versions)
    assert ("warning", "key-expired") in graves(found[deks.old])
    assert ("error", "key-not-yet-valid") in graves(found[deks.new])
    vault_emulator.service.version(deks.name, deks.new).change({"nbf": past, "exp": past})
    assert ("error", "key-expired") in graves(checked(deks, *versions)[deks.new])
    deks.vault.disable(deks.name, deks.old)
    assert graves(checked(deks, *versions)[deks.old]) == {("error", "key-disabled")}


def test_check_refuses_one_key_under_two_versions(deks: Deks, vault_emulator: VaultEmulator) -> None:
    """A version that holds the same key as the old one would change nothing."""
    twin, first = (vault_emulator.service.version(deks.name, one) for one in (deks.new, deks.old))
    twin.key = first.key
    found = checked(deks, "--from", deks.old, "--to", deks.new)
    assert ("error", "same-key") in graves(found[deks.new])


def test_check_without_versions_lists_those_of_the_vault(deks: Deks) -> None:
    """What --from and --to can name."""
    found = checked(deks)
    assert set(found) == {deks.old, deks.new}
    assert all(graves(one) == {("info", "key-listed")} for one in found.values())


def test_plan_forecasts_calls_and_the_time_that_they_take(deks: Deks) -> None:
    """Two a value, at the limit for keys of this size; a run stays within it."""
    planned = deks.rewrap("plan", "--from", deks.old, "--to", deks.new, "--json")
    assert planned.code == 0, planned.err
    forecast = planned.event("plan")["forecast"]
    assert forecast["remote_calls"]["low"] == 2 * RECORDS
    assert "400 calls/s: the limit for RSA-2048 software keys" in forecast["derived_from"]["remote_calls"]
    deks.job("max_calls_per_s = 4")
    planned = deks.rewrap("plan", "--from", deks.old, "--to", deks.new, "--json")
    slower = planned.event("plan")["forecast"]
    assert slower["seconds"]["low"] >= 2 * RECORDS / 4
    deks.job()
    spent = deks.run().event("run_ended")["spent"]["vault_calls"]
    assert forecast["remote_calls"]["low"] <= spent <= forecast["remote_calls"]["high"]
    # and back: what the next forecast says is from what this run took
    planned = deks.rewrap("plan", "--from", deks.new, "--to", deks.old, "--json")
    again = planned.event("plan")["forecast"]
    assert again["basis"]["remote_calls"] == ["measured", "counted"]
    assert "quota" in again["basis"]["seconds"]
    done = deks.rewrap("run", "--from", deks.new, "--to", deks.old, "--allow-unseen-target", "--json")
    spent = done.event("run_ended")["spent"]["vault_calls"]
    assert again["remote_calls"]["low"] <= spent <= again["remote_calls"]["high"]


def test_verify_works_while_the_old_version_is_disabled(deks: Deks) -> None:
    """As after a rotation: nothing is under it any more, and nobody asks it."""
    assert deks.run().code == 0
    deks.vault.disable(deks.name, deks.old)
    assert deks.rewrap("verify", "--deep").code == 0


def test_the_wrong_version_of_a_key_is_refused_before_anything_is_written(deks: Deks) -> None:
    """Records that name a version, and are under another one: the version is doubted, not the records."""
    deks.bench.sql("UPDATE deks SET mek_version = $1", deks.new)
    stopped = deks.rewrap("run", "--from", deks.new, "--to", deks.old, "--allow-unseen-target", "--json")
    assert stopped.code == 10
    assert f'key version "{deks.new}" opens none' in stopped.err
    assert deks.under == {deks.new: RECORDS}
    assert deks.rewrap("quarantine", "list", "--json").events == []


def test_nothing_secret_reaches_screen_ledger_or_file(deks: Deks, vault_emulator: VaultEmulator) -> None:
    """Neither data keys, wrapped or not, nor tokens, in a run that is refused and in one that ends."""
    vault_emulator.proxy.add(forbidden(), "unwrapkey", skip=30, times=1)
    wrapped = [row[0] for row in deks.bench.sql("SELECT wrapped_dek FROM deks")]
    refused, done = deks.run("--debug"), deks.run("--debug")
    assert (refused.code, done.code) == (10, 0), refused.err + done.err
    wrapped += [row[0] for row in deks.bench.sql("SELECT wrapped_dek FROM deks")]
    said = refused.out + refused.err + done.out + done.err
    kept = b"".join(path.read_bytes() for path in deks.bench.folder.iterdir() if path.is_file())
    everything = said.encode() + kept
    hidden = [form for key in deks.keys.values() for form in (key, key.hex().encode(), base64.b64encode(key))]
    hidden += [one.encode() for one in wrapped]
    hidden += [token.encode() for token in vault_emulator.service.tokens]
    hidden += [one.secret.encode() for one in vault_emulator.service.principals.values()]
    assert [one for one in hidden if one in everything] == []


def test_records_without_a_version_are_found_by_opening_them(deks: Deks) -> None:
    """They count as unmarked, which is not complete, and are wrapped anew where the job says so."""
    deks.bench.sql("ALTER TABLE deks ALTER mek_version DROP NOT NULL")
    deks.bench.sql("UPDATE deks SET mek_version = NULL WHERE id < 3")
    done = deks.run()
    assert done.code == 3, done.err
    assert done.event("verdict")["unmarked"] == 3
    assert deks.under == {deks.new: RECORDS - 3, None: 3}
    path = deks.bench.folder / "rewrap.toml"
    path.write_text(path.read_text() + 'unmarked = "reseal"\n')
    done = deks.run()
    assert done.code == 0, done.err
    assert deks.under == {deks.new: RECORDS}
    deks.opens()
