"""`check`, `plan` and `verify --print-queries` for containers of Cosmos DB."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.stores.cosmos.inspect import indexed
from tests.support import workbench
from tests.support.cosmos import STORE_AND_KEYS, CosmosDatabase
from tests.support.proxy import CHARGE, Answer, FaultProxy
from tests.support.values import KEYS
from tests.support.workbench import Result

JOB = (
    STORE_AND_KEYS
    + """
[layouts.wrap]
encoding = "base64"
cipher = "aes-256-gcm"
version = "v[0-9]+"
[[targets]]
container = "deks"
fields = [{ column = "wrappedDek", layout = "wrap", version = { column = "mekVersion" } }]
"""
)

Rewrap = Callable[..., Result]


def dek(name: str, version: str = "v1", key: bytes | None = None) -> dict[str, Any]:
    nonce = os.urandom(12)
    sealed = AESGCM(key or KEYS[version]).encrypt(nonce, os.urandom(32), None)
    return {"id": name, "mekVersion": version, "wrappedDek": base64.b64encode(nonce + sealed).decode()}


@pytest.fixture
def rewrap(cosmos: CosmosDatabase, tmp_path: Path) -> Rewrap:
    """Runs a command over a job on the test's database, with other variables where they are given."""
    (tmp_path / "rewrap.toml").write_text(JOB)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REWRAP_")},
        **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()},
        **cosmos.environ, "NO_COLOR": "1", "COLUMNS": "200",
    }  # fmt: skip

    def command(*arguments: str, **more: str) -> Result:
        return workbench.rewrap(arguments, tmp_path, {**environ, **more})

    return command


def findings(ran: Result) -> dict[str, dict[str, Any]]:
    """The findings of a check, by code."""
    return {event["code"]: event for event in ran.events if event["type"] == "finding"}


def test_check_of_a_container_that_is_fit(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """Account, consistency, guard, documents, the right to write, and both keys; and nothing is written."""
    cosmos.container(
        "deks", indexingPolicy={"indexingMode": "consistent", "excludedPaths": [{"path": "/wrappedDek/?"}]}
    )
    cosmos.upsert("deks", *(dek(f"d{at}", "v2" if at % 3 else "v1") for at in range(30)))
    before = cosmos.etags("deks")
    ran = rewrap("check", "--from", "v1", "--to", "v2", "--json")
    assert ran.code == 0, ran.out + ran.err
    found = findings(ran)
    assert set(found) == {
        "account", "throughput", "consistency", "change-feed", "guard-made", "documents", "may-write",
        "canary-not-tried", "key-proven",
    }  # fmt: skip
    assert "30 documents, partitioned by /id" in found["documents"]["reason"]
    assert "Session" in found["consistency"]["reason"]
    assert cosmos.etags("deks") == before
    names = [
        one["id"]
        for one in cosmos.account.request("GET", f"dbs/{cosmos.name}/colls")[0]["DocumentCollections"]
    ]
    assert names == ["deks"]


def test_check_names_what_stands_against_it(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """Expiry, an index that lacks and one too many, unique ciphertext: each with what to do."""
    cosmos.container(
        "deks",
        defaultTtl=3600,
        indexingPolicy={"indexingMode": "consistent", "excludedPaths": [{"path": "/mekVersion/?"}]},
        uniqueKeyPolicy={"uniqueKeys": [{"paths": ["/wrappedDek"]}]},
    )
    ran = rewrap("check", "--json")
    found = findings(ran)
    assert ran.code == 0
    for code in ("expiry", "not-indexed", "unique-ciphertext"):
        assert found[code]["severity"] == "warning", found
        assert found[code]["hint"]
    assert "/mekVersion" in found["not-indexed"]["reason"]
    assert found["ciphertext-indexed"]["severity"] == "info"
    assert found["empty"]["severity"] == "info"


@pytest.mark.parametrize(("mode", "says"), [("lazy", "lazily"), ("none", "no index")])
def test_check_refuses_what_cannot_be_searched(
    cosmos: CosmosDatabase, rewrap: Rewrap, mode: str, says: str
) -> None:
    """An index that lags, or none at all: nothing that verify counts there would mean anything."""
    cosmos.container("deks", indexingPolicy={"indexingMode": mode, "automatic": mode == "lazy"})
    ran = rewrap("check", "--json")
    assert ran.code == 1
    assert says in findings(ran)["refused"]["reason"]
    assert says in rewrap("verify", "--to", "v2").err


def test_check_tells_what_is_not_there(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """No such container, no such database: named, and the rest is still looked at."""
    ran = rewrap("check", "--json")
    assert ran.code == 1
    assert "deks" in findings(ran)["refused"]["reason"]
    assert "guard-made" in findings(ran)
    ran = rewrap("check", "--json", COSMOS_DATABASE="elsewhere")
    assert ran.code == 1
    assert "elsewhere" in findings(ran)["no-database"]["reason"]


def test_check_proves_the_right_to_write_without_writing(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, rewrap: Rewrap
) -> None:
    """403 for a patch that could not land: the role lacks the right, and is told which one has it."""
    cosmos.container("deks")
    cosmos.container("rewrap", "/relation")
    cosmos.upsert("deks", dek("a"))
    cosmos_proxy.add(Answer(403, body='{"code": "Forbidden", "message": "no"}'), "patch")
    before = cosmos.etags("deks")
    ran = rewrap("check", "--json", COSMOS_ENDPOINT=cosmos_proxy.endpoint)
    assert ran.code == 1
    found = findings(ran)
    for code in ("no-write", "guard-closed"):
        assert found[code]["severity"] == "error"
        assert "Data Contributor" in found[code]["hint"]
    cosmos_proxy.clear()
    found = findings(rewrap("check", "--json", COSMOS_ENDPOINT=cosmos_proxy.endpoint))
    assert {"may-write", "guard"} <= set(found)
    assert cosmos.etags("deks") == before


def test_check_refuses_accounts_that_take_writes_in_two_regions(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, rewrap: Rewrap
) -> None:
    """Of two writes one may be dropped there: nothing is proven by counting."""
    cosmos.container("deks")
    account, _ = cosmos.account.request("GET", "")
    account["enableMultipleWriteLocations"] = True
    cosmos_proxy.add(Answer(200, {"Content-Type": "application/json"}, json.dumps(account)), "account")
    ran = rewrap("check", "--json", COSMOS_ENDPOINT=cosmos_proxy.endpoint)
    assert ran.code == 1
    assert "several regions" in findings(ran)["several-write-regions"]["reason"]
    refused = rewrap("verify", "--to", "v2", COSMOS_ENDPOINT=cosmos_proxy.endpoint)
    assert refused.code == 2
    assert "several regions" in refused.err


def test_check_says_who_works_there(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """A lease that is alive is a warning; one that was given back is none."""
    cosmos.container("deks")
    cosmos.container("rewrap", "/relation")
    lease = {
        "id": "lease", "relation": f"{cosmos.name}/deks", "run_id": "abc", "owner": "anna@there",
        "released": False, "lease_s": 30, "holder": {},
    }  # fmt: skip
    cosmos.upsert("rewrap", lease)
    assert "anna@there" in findings(rewrap("check", "--json"))["busy"]["reason"]
    cosmos.upsert("rewrap", {**lease, "released": True})
    assert "busy" not in findings(rewrap("check", "--json"))


def test_check_tells_a_wrong_key(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """Stored values that no key opens are found before a run would be refused for them."""
    cosmos.container("deks")
    cosmos.upsert("deks", *(dek(f"d{at}", "v1", bytes(32)) for at in range(25)))
    ran = rewrap("check", "--from", "v1", "--to", "v2", "--json")
    assert ran.code == 1
    assert findings(ran)["key-refused"]["subject"] == "key v1"


def test_check_sends_nobody_to_a_look_that_takes_a_database(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """Nothing is under the old version: `discover`, which samples Postgres, could not say why."""
    cosmos.container("deks")
    cosmos.upsert("deks", dek("a", "v2"))
    ran = rewrap("check", "--from", "v1", "--to", "v2", "--json")
    assert findings(ran)["nothing-in-scope"]["hint"] == "check --from, and the layout's marker"


def test_verdict_says_how_often_it_counted(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """A count that leaves nothing is made again, and one that leaves something is not."""
    cosmos.container("deks")
    cosmos.upsert("deks", dek("a", "v2"))
    ran = rewrap("verify", "--to", "v2")
    assert "complete — 1 values counted by queries, twice; stale 0" in ran.out
    cosmos.upsert("deks", dek("b", "v1"))
    ran = rewrap("verify", "--to", "v2", "--deep")
    assert "2 values counted, each under v2 tried with its key, by queries; stale 1" in ran.out


def test_plan_measures_what_reading_charges(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, rewrap: Rewrap
) -> None:
    """A page that charges more makes the forecast dearer; patches are an assumption, and called one."""
    cosmos.container("deks")
    cosmos.upsert("deks", *(dek(f"d{at}") for at in range(100)))
    units = []
    for charge in (2.0, 502.0):
        cosmos_proxy.charges = {"query": charge}
        ran = rewrap("plan", "--from", "v1", "--to", "v2", "--json", COSMOS_ENDPOINT=cosmos_proxy.endpoint)
        assert ran.code == 0, ran.err
        told = json.loads(ran.out)
        assert told["in_scope"] == 100
        units.append(told["forecast"]["request_units"])
        assert told["forecast"]["wal_bytes"] == {"low": 0, "high": 0}
    # one page of 100 documents: 500 more to read each once; at most three times, and again for its patch
    assert units[1]["low"] - units[0]["low"] == pytest.approx(500, abs=2)
    assert units[1]["high"] - units[0]["high"] == pytest.approx(2_000, abs=2)
    assert units[0]["low"] >= 600
    shown = rewrap("plan", "--from", "v1", "--to", "v2").out
    assert "request units" in shown
    assert "WAL" not in shown
    assert CHARGE == "x-ms-request-charge"


def test_printed_queries_count_what_verify_counts(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """One query for each field, with constants and no semicolon: as Data Explorer takes it."""
    cosmos.container("deks")
    odd = [dek(f"o{at}") for at in range(3)]
    del odd[0]["mekVersion"]
    odd[1]["mekVersion"] = None
    odd[2]["mekVersion"] = 2
    cosmos.upsert("deks", dek("a", "v2"), dek("b", "v2"), dek("c", "v1"), *odd)
    ran = rewrap("verify", "--print-queries", "--to", "v2")
    comment, query = ran.out.strip().split("\n")
    assert comment.startswith("-- deks.wrappedDek: documents with a value that is not under v2")
    assert query.endswith(")")
    body = {"query": query.replace("WHERE ", "WHERE true AND (", 1) + ")", "parameters": []}
    headers = {
        "Content-Type": "application/query+json", "x-ms-documentdb-isquery": "True",
        "x-ms-documentdb-query-enablecrosspartition": "True",
    }  # fmt: skip
    answer, _ = cosmos.account.request("POST", f"dbs/{cosmos.name}/colls/deks/docs", body, headers=headers)
    assert answer["Documents"] == [4]
    verified = rewrap("verify", "--to", "v2", "--json")
    assert verified.code == 3
    classes = verified.event("field_verdict")["classes"]
    assert sum(classes.values()) - classes["current"] == 4


@pytest.mark.parametrize(
    ("policy", "path", "wanted"),
    [
        ({}, ("a",), True),
        ({"automatic": False}, ("a",), False),
        ({"includedPaths": [], "excludedPaths": [{"path": "/*"}]}, ("a",), False),
        ({"includedPaths": [{"path": "/*"}], "excludedPaths": [{"path": "/a/?"}]}, ("a",), False),
        ({"includedPaths": [{"path": "/*"}], "excludedPaths": [{"path": "/a/?"}]}, ("a", "b"), True),
        ({"includedPaths": [{"path": "/*"}], "excludedPaths": [{"path": "/a/*"}]}, ("a", "b"), False),
        ({"includedPaths": [{"path": "/a/b/?"}], "excludedPaths": [{"path": "/*"}]}, ("a", "b"), True),
        ({"includedPaths": [{"path": "/a/b/?"}], "excludedPaths": [{"path": "/*"}]}, ("a", "c"), False),
        ({"includedPaths": [{"path": "/a/*"}], "excludedPaths": [{"path": "/a/b/?"}]}, ("a", "b"), False),
        ({"includedPaths": [{"path": '/"a"/?'}], "excludedPaths": [{"path": "/*"}]}, ("a",), True),
        ({"includedPaths": [{"path": "/a/[]/b/?"}], "excludedPaths": [{"path": "/*"}]}, ("a", 0, "b"), True),
    ],
)
def test_whether_a_place_is_indexed(
    policy: dict[str, Any], path: tuple[str | int, ...], wanted: bool
) -> None:
    """The most precise path of a policy that covers a place decides."""
    assert indexed(policy, path) is wanted


def test_values_put_aside_are_found_by_their_containers_name(cosmos: CosmosDatabase, rewrap: Rewrap) -> None:
    """A container has one name everywhere, and one that the job has not is no container without trouble."""
    cosmos.container("deks", "/id")
    cosmos.upsert("deks", *(dek(f"d{at}") for at in range(4)), dek("other", key=os.urandom(32)))
    assert rewrap("quarantine", "list", "--table", "deks").out.strip() == "nothing is put aside"
    assert rewrap("run", "--from", "v1", "--to", "v2", "--allow-unseen-target").code == 3
    for name in ("deks", f"{cosmos.name}/deks"):
        listed = rewrap("quarantine", "list", "--table", name, "--json")
        assert [entry["row_id"] for entry in listed.events] == ["other"], listed
    shown = rewrap("quarantine", "show", "--table", "deks")
    assert shown.code == 0
    assert f"--table {cosmos.name}/deks --row" in shown.out
    for command in (("list",), ("show",), ("retry",), ("waive", "--all", "--reason", "known")):
        missing = rewrap("quarantine", *command, "--table", "nosuch")
        assert missing.code == 2, missing
        assert 'no table "nosuch" in the job' in missing.err
        assert "its tables are deks" in missing.err
    assert rewrap("quarantine", "retry", "--table", "deks").code == 3
    assert rewrap("quarantine", "waive", "--table", "deks", "--all", "--reason", "known").code == 0


@pytest.mark.parametrize("kind", ["account", "container", "query"])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(302, {"Location": "https://login.invalid/"}, "<html>"),
        Answer(307, {}, ""),
        Answer(204, {}, ""),
        Answer(200, {"Content-Type": "text/html; charset=utf-8"}, "<html>sign in</html>"),
    ],
    ids=["302", "307", "204", "html"],
)
def test_what_answers_and_is_no_cosmos_db_is_told(
    cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, rewrap: Rewrap, answer: Answer, kind: str
) -> None:
    """A login portal in front of an account is neither an internal error nor an empty container."""
    cosmos.container("deks", "/id")
    cosmos.upsert("deks", dek("d1"))
    cosmos_proxy.add(answer, kind)
    ran = rewrap("plan", "--from", "v1", "--to", "v2", COSMOS_ENDPOINT=cosmos_proxy.endpoint)
    assert ran.code == 1, ran
    assert "is no Cosmos DB" in ran.err
    assert "stores.*.endpoint" in ran.err


@pytest.mark.parametrize(
    ("store", "more", "says"),
    [
        ('guard_container = "others"', "", 'guard container "others" is partitioned by /x'),
        ("", '[[untouched]]\ncontainer = "nosuch"\n', 'has no container "nosuch"'),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    cosmos: CosmosDatabase, rewrap: Rewrap, tmp_path: Path, store: str, more: str, says: str
) -> None:
    """Somebody else's container for the guard's, and one that is to stay as it is and is not there."""
    cosmos.container("deks", "/id")
    cosmos.container("others", "/x")
    cosmos.upsert("deks", dek("d1"))
    (tmp_path / "rewrap.toml").write_text(JOB.replace("settle_s = 0", f"settle_s = 0\n{store}") + more)
    run = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")
    before = cosmos.documents("deks")
    dry = rewrap(*run, "--dry-run")
    assert dry.code == 2, dry
    assert says in dry.err
    assert cosmos.documents("deks") == before
    there, _ = cosmos.account.request("GET", f"dbs/{cosmos.name}/colls")
    assert {one["id"] for one in there["DocumentCollections"]} == {"deks", "others"}
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rewrap.toml"]
    real = rewrap(*run)
    assert real.code == 2, real
    assert says in real.err
    assert cosmos.documents("deks") == before
