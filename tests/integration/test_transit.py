"""A rotation of values that a transit engine made, in Postgres: the whole program, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from tests.support.proxy import Drop, Meanwhile
from tests.support.transit import RULES, TransitEngine
from tests.support.workbench import Result, Workbench

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "vault-transit"
patience_s = 1
[keys.vault-transit]
address = "${{VAULT_ADDR}}"
name = "{name}"
token = "file:token"
[layouts.value]
like = "vault-transit"
{layout}
[pace]
batch_size = 8
[[targets]]
table = "notes"
fields = [{{ column = "body", layout = "value" }}]
"""

ROWS = 64


@dataclass
class Notes:
    """A table of values that an application had the engine make, and who keeps the keys."""

    bench: Workbench
    engine: TransitEngine
    name: str
    token: str
    bound: str

    def rewrap(self, *arguments: str) -> Result:
        done = self.bench.rewrap(*arguments, VAULT_ADDR=self.engine.address)
        said = done.out + done.err
        assert self.token not in said
        assert "hidden " not in said
        return done

    def run(self) -> Result:
        return self.rewrap("run", "--from", "1", "--to", "2", "--allow-unseen-target", "--json")

    def context(self, account: str) -> dict[str, bytes]:
        return {self.bound: account.encode()} if self.bound else {}

    @property
    def under(self) -> dict[str, int]:
        found = self.bench.sql("SELECT split_part(body, ':', 2), count(*) FROM notes GROUP BY 1")
        return dict(found)

    def opens(self) -> None:
        """Every row opens to its own text, for its own account."""
        for number, account, body in self.bench.sql("SELECT id, account_id, body FROM notes ORDER BY id"):
            opened = self.engine.decrypt(self.name, body, **self.context(account))
            assert opened == f"hidden {number}".encode()

    def nothing_is_put_aside(self) -> None:
        assert self.rewrap("quarantine", "list", "--json").events == []


def notes_of(bench: Workbench, engine: TransitEngine, bound: str = "") -> Notes:
    """`bound` is what an application gives the account as: `context`, `associated_data`, or nothing."""
    name = engine.new_key(1, derived=bound == "context")
    token = engine.token(RULES.format(name=name))
    found = Notes(bench, engine, name, token, bound)
    (bench.folder / "rewrap.toml").write_text(
        JOB.format(name=name, layout='aad = "{account_id}"' if bound else "")
    )
    (bench.folder / "token").write_text(token)
    bench.sql("CREATE TABLE notes (id bigint PRIMARY KEY, account_id text NOT NULL, body text)")
    rows = [
        (at, f"a{at}", engine.encrypt(name, 1, f"hidden {at}".encode(), **found.context(f"a{at}")))
        for at in range(ROWS)
    ]
    bench.insert("notes", ["id", "account_id", "body"], rows)
    engine.ask(f"transit/keys/{name}/rotate", {})
    return found


@pytest.mark.parametrize("bound", ["", "context", "associated_data"])
def test_values_are_rewrapped_under_the_new_version(
    bench: Workbench, transit: TransitEngine, bound: str
) -> None:
    """Check, run and verify; a tampered value and one of another row are put aside, and nothing else."""
    notes = notes_of(bench, transit, bound)
    checked = notes.rewrap("check", "--from", "1", "--to", "2", "--json")
    codes = [event["code"] for event in checked.events if event["type"] == "finding"]
    assert codes.count("key-unwraps") == 2, checked.out
    listed = notes.rewrap("keys", "list", "--json")
    assert listed.code == 0, listed.err
    assert all(f'"{version}"' in listed.out for version in ("1", "2"))
    if bound:
        bench.sql("UPDATE notes SET account_id = 'another' WHERE id = 7")
    else:
        bench.sql("UPDATE notes SET body = overlay(body placing 'AAAA' from 30) WHERE id = 7")
    transit.proxy.reset()
    done = notes.run()
    assert done.code == 3, done.err
    assert notes.under == {"v1": 1, "v2": ROWS - 1}
    asked = set(transit.proxy.counts()) & {"rewrap", "decrypt", "encrypt"}
    assert asked == ({"decrypt", "encrypt"} if bound == "associated_data" else {"rewrap"})
    put_aside = notes.rewrap("quarantine", "list", "--json").events
    assert [one["reason"] for one in put_aside] == ["unopenable"]
    bench.sql("DELETE FROM notes WHERE id = 7")
    notes.opens()
    assert notes.rewrap("verify", "--to", "2", "--deep").code == 0


def test_a_run_stops_where_the_engine_refuses_and_goes_on_later(
    bench: Workbench, transit: TransitEngine
) -> None:
    """A version that is disabled, a revoked token and a sealed server, each in the middle: exit 10, nothing
    put aside, and a resume ends what was begun."""
    notes = notes_of(bench, transit)

    def once_written(act: Callable[[], object]) -> None:
        """Has it done before the first call that comes after another batch was written."""
        before, done = notes.under["v1"], Event()

        def meanwhile(path: str) -> None:
            if not done.is_set() and notes.under["v1"] < before:
                done.set()
                act()

        transit.proxy.clear()
        transit.proxy.add(Meanwhile(meanwhile), "rewrap")

    once_written(lambda: transit.configure(notes.name, min_decryption_version=2))
    stopped = notes.run()
    assert stopped.code == 10, stopped.out
    assert "min_decryption_version" in stopped.err
    notes.nothing_is_put_aside()
    transit.configure(notes.name, min_decryption_version=1)

    once_written(lambda: transit.revoke(notes.token))
    stopped = notes.rewrap("resume")
    assert stopped.code == 10, stopped.out
    assert "takes no such token" in stopped.err
    notes.nothing_is_put_aside()
    notes.token = transit.token(RULES.format(name=notes.name))
    (bench.folder / "token").write_text(notes.token)

    once_written(transit.seal)
    stopped = notes.rewrap("resume")
    transit.unseal()
    assert stopped.code == 10, stopped.out
    assert "for it is sealed" in stopped.err
    notes.nothing_is_put_aside()
    assert 0 < notes.under["v1"] < ROWS

    transit.proxy.clear()
    done = notes.rewrap("resume")
    assert done.code == 0, done.err
    assert notes.under == {"v2": ROWS}
    notes.opens()


def test_an_answer_that_was_lost_is_asked_for_again(bench: Workbench, transit: TransitEngine) -> None:
    """A rewrap that was carried out and not heard of changes nothing in the engine."""
    notes = notes_of(bench, transit)
    path = bench.folder / "rewrap.toml"
    path.write_text(path.read_text().replace("patience_s = 1\n", ""))
    transit.proxy.add(Drop(applied=True), "rewrap", skip=4, times=1)
    done = notes.run()
    assert done.code == 0, done.err
    assert notes.under == {"v2": ROWS}
    notes.opens()


def test_what_the_job_lacks_is_said(bench: Workbench, tmp_path: Path) -> None:
    """Without a server: an address that would send the token in clear, and a cipher that wants bytes."""
    for old, new, said in (
        ('address = "${VAULT_ADDR}"', 'address = "http://vault.example:8200"', "in clear"),
        ('address = "${VAULT_ADDR}"', "", "vault-transit.address: is missing"),
        ('like = "vault-transit"', 'like = "libsodium-token"', '"vault-transit"'),
    ):
        text = JOB.format(name="orders", layout="").replace(old, new)
        (bench.folder / "rewrap.toml").write_text(text)
        done = bench.rewrap("check", VAULT_ADDR="https://vault.example", VAULT_TOKEN=json.dumps("x"))
        assert done.code == 2, done.out
        assert said in done.err
