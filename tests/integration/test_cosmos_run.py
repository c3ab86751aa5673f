"""Whole runs over containers: what the engine makes of a store without transactions, through its commands."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.cosmos import CosmosDatabase
from tests.support.cosmosbench import CosmosBench
from tests.support.proxy import REFUSED_TOKEN, Answer, Drop, FaultProxy, Meanwhile, throttled
from tests.support.values import KEYS, aead, box, unaead, unbox
from tests.support.workbench import Result, rewrap

JOB = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${COSMOS_ENDPOINT}"
key = "env:COSMOS_KEY"
database = "${COSMOS_DATABASE}"
settle_s = 0.1
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[layouts.aead]
marker = "{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{owner.id}/{id}"
[pace]
batch_size = 40
[[targets]]
container = "notes"
fields = [
  { column = "body", layout = "libsodium-token" },
  { column = "meta", path = "title", layout = "aead" },
  { column = "tags", path = "[*].text", layout = "libsodium-token" },
]
"""

NOTES = 200


@dataclass
class Bench:
    """A container of notes behind a proxy, and a job over it."""

    database: CosmosDatabase
    proxy: FaultProxy
    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "rewrap.toml").write_text(JOB)
        self.database.container("notes", "/tenant")
        self.before = {f"n{at:03}": self.note(at) for at in range(NOTES)}
        self.database.upsert("notes", *self.before.values())

    @staticmethod
    def note(at: int, version: str = "v1") -> dict[str, Any]:
        """A note with a value, one within an object, bound to two properties, and some in an array."""
        name = f"n{at:03}"
        tags = [{"text": box(f"tag {at} {place}", version), "n": place} for place in range(at % 4)]
        return {
            "id": name, "tenant": f"t{at % 9}", "owner": {"id": at}, "plain": {"pi": 3.25, "at": at},
            "body": box(f"body {at}", version), "tags": tags,
            "meta": {"title": aead(f"title {at}", f"{at}/{name}", version), "lang": "fr"},
        }  # fmt: skip

    def rewrap(self, *arguments: str) -> Result:
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REWRAP_")},
            **self.database.environ,
            "COSMOS_ENDPOINT": self.proxy.endpoint,
            **{f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()},
        }
        return rewrap(arguments, self.folder, environ)

    def run(self) -> Result:
        return self.rewrap("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")

    def notes(self) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in self.database.documents("notes")}

    def check_opens(self, after: dict[str, dict[str, Any]], *, but: tuple[str, ...] = ()) -> None:
        """Every value opens under the new key alone to what it was, and nothing else has changed."""
        new = {"v2": KEYS["v2"]}
        assert set(after) == set(self.before)
        for name, before in self.before.items():
            now, at = after[name], before["owner"]["id"]
            if name in but:
                continue
            assert unbox(now["body"], new) == f"body {at}".encode()
            assert unaead(now["meta"]["title"], f"{at}/{name}", new) == f"title {at}".encode()
            assert [unbox(tag["text"], new) for tag in now["tags"]] == [
                f"tag {at} {place}".encode() for place in range(at % 4)
            ]
            assert opened(now) == opened(before)


def opened(note: dict[str, Any]) -> dict[str, Any]:
    """A note without what was rewritten, and without what the server writes itself."""
    return {
        **{name: one for name, one in note.items() if not name.startswith("_") and name != "body"},
        "tags": [tag["n"] for tag in note["tags"]],
        "meta": note["meta"]["lang"],
    }


@pytest.fixture
def bench(cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path) -> Bench:
    return Bench(cosmos, cosmos_proxy, tmp_path)


def test_the_next_forecast_is_of_what_this_run_was_charged(bench: Bench) -> None:
    """What a patch is charged is measured by the first run, and what the second is charged lies in it."""

    def planned() -> dict[str, Any]:
        ran = bench.rewrap("plan", "--from", "v2", "--to", "v1", "--json")
        assert ran.code == 0, ran.err
        told: dict[str, Any] = ran.event("plan")["forecast"]
        return told

    first = bench.run().event("run_ended")
    said = planned()
    assert said["measured_by"]["request_units"] == [first["run_id"]]
    assert said["basis"]["request_units"] == ["measured"]
    job = bench.folder / "rewrap.toml"
    job.write_text(JOB.replace("settle_s", "max_rus = 10\nsettle_s"))
    capped = planned()
    assert "max_rus of 10 RU/s" in capped["derived_from"]["seconds"]
    assert capped["seconds"]["low"] >= said["request_units"]["low"] / 10 - 1
    job.write_text(JOB)
    spent = bench.rewrap("run", "--from", "v2", "--to", "v1", "--json").event("run_ended")["spent"]
    units = said["request_units"]
    assert units["low"] <= spent["request_units"] <= units["high"], (spent, units)
    # a range so wide that it says nothing would hold too
    assert units["high"] < 4 * units["low"]


def test_a_run_rotates_values_wherever_they_are(bench: Bench) -> None:
    """Properties, paths and array elements; and every command of the way says what it should."""
    etags = bench.database.etags("notes")
    dry = bench.rewrap("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert bench.database.etags("notes") == etags
    ended = bench.run()
    assert ended.code == 0, ended.err
    after = bench.notes()
    bench.check_opens(after)
    spent = ended.event("run_ended")["spent"]
    assert spent["request_units"] > 0
    assert bench.rewrap("verify", "--to", "v2", "--deep").code == 0
    again = bench.rewrap("run", "--from", "v1", "--to", "v2", "--json")
    assert again.code == 0, again.err
    assert {name: one["_etag"] for name, one in after.items()} == bench.database.etags("notes")


def test_a_token_refused_midway_is_no_end(bench: Bench) -> None:
    """The feed range is read again from its start, everything is counted once, and the run completes."""
    bench.proxy.add(REFUSED_TOKEN, "query", path="/notes/", token=True, skip=2, times=1)
    ended = bench.run()
    assert ended.code == 0, ended.err
    assert bench.proxy.faults()["query"] == 1
    bench.check_opens(bench.notes())
    outcomes = ended.event("run_ended")["outcomes"]["notes"]["body"]
    assert sum(outcomes.values()) == NOTES


def test_a_document_that_is_refused_is_put_aside_alone(bench: Bench) -> None:
    """The store takes everything but one document: that one is named, the others are done."""
    bench.proxy.add(Answer(413), "patch", path="/n077$")
    ended = bench.run()
    assert ended.code == 3, ended.err
    aside = [(event["row"], event["reason"]) for event in ended.events if event["type"] == "quarantined"]
    assert {row for row, _ in aside} == {json.dumps(["n077", '"t5"'], separators=(",", ":"))}
    assert {reason for _, reason in aside} == {"rejected"}
    after = bench.notes()
    bench.check_opens(after, but=("n077",))
    assert {name: one for name, one in after["n077"].items() if name[0] != "_"} == bench.before["n077"]


def test_a_run_outlasts_a_bad_line(bench: Bench) -> None:
    """429 with and without a time, 503, 449, 408, 410, lost answers, a live writer: all of it at once."""

    def meanwhile(path: str) -> None:
        beside = bench.database.beside()
        at = int(path.rsplit("/n", 1)[1])
        beside.upsert("notes", bench.note(at, "v2"))
        beside.account.close()

    bench.proxy.add(throttled(100), "patch", every=17)
    bench.proxy.add(throttled(), "query", every=9)
    for status in (503, 449, 408, 410):
        bench.proxy.add(Answer(status), "patch", chance=0.02)
        bench.proxy.add(Answer(status), "read", chance=0.02)
    bench.proxy.add(Drop(applied=True), "patch", every=13)
    bench.proxy.add(Drop(applied=True), "replace", every=11)
    bench.proxy.add(Drop(), "patch", every=19)
    bench.proxy.add(Meanwhile(meanwhile), "patch", every=10)
    ended = bench.run()
    assert ended.code == 0, ended.err + ended.out[-2000:]
    assert sum(bench.proxy.faults().values()) > 40
    bench.check_opens(bench.notes())
    outcomes = ended.event("run_ended")["outcomes"]["notes"]
    assert all(set(counts) <= {"resealed", "current", "converged", "null"} for counts in outcomes.values())


def test_a_server_that_never_goes_on_ends_the_run(bench: Bench) -> None:
    """Every token is refused: the run gives up, and does not begin again for ever."""
    rule = bench.proxy.add(REFUSED_TOKEN, "query", path="/notes/", token=True)
    ended = bench.run()
    assert ended.code == 1, ended.err
    assert "does not go on where it was" in ended.err
    assert rule.befallen < 30
    bench.proxy.clear()
    again = bench.run()
    assert again.code == 0, again.err
    bench.check_opens(bench.notes())


def test_a_container_made_anew_during_a_run_is_not_complete(bench: Bench) -> None:
    """It is dropped and made anew, empty, while documents are patched: nothing is left, nor done."""

    def anew(_: object) -> None:
        bench.database.drop("notes")
        bench.database.container("notes", "/tenant")

    bench.proxy.add(Meanwhile(anew), "patch", skip=60, times=1)
    ended = bench.run()
    assert ended.code == 3, ended.err + ended.out[-2000:]
    reasons = ended.event("run_ended")["reasons"]
    assert any("made anew while the run was at work" in reason for reason in reasons), reasons
    assert ended.event("run_ended")["state"] == "incomplete"


def test_what_stands_in_a_versions_place_is_not_repeated(bench: Bench) -> None:
    """Words, or what a terminal would act on: counted as another version, and shown as what it is not."""
    odd = {"esc": "\x1b]0;owned\x07v1", "words": "CANARY diagnosis: diabetes", "kind": "v9-beta"}
    (bench.folder / "rewrap.toml").write_text(
        JOB[: JOB.index("[[targets]]")]
        + '[layouts.bare]\nencoding = "base64"\ncipher = "secretbox"\n[audit]\nfile = "audit.jsonl"\n'
        + '[[targets]]\ncontainer = "notes"\n'
        + 'fields = [{ column = "bare", layout = "bare", version = { column = "kid" } }]\n'
    )
    for at, name in enumerate(bench.before):
        kid = list(odd.values())[at] if at < len(odd) else "v1"
        value = box(f"bare {at}").partition(":")[2]
        bench.database.upsert("notes", {**bench.before[name], "bare": value, "kid": kid})
    ended = bench.run()
    assert ended.code == 3, ended.err
    verified = bench.rewrap("verify", "--json")
    (found,) = [event for event in verified.events if event["type"] == "field_verdict"]
    assert found["versions"] == {"v2": NOTES - len(odd), "v9-beta": 1, "…": 2}
    said = [ended.out, ended.err, verified.out, bench.rewrap("plan", "--from", "v1", "--to", "v2").out]
    said.append((bench.folder / "audit.jsonl").read_text())
    assert not any("CANARY" in text or "owned" in text for text in said)


def test_a_count_without_a_number_is_no_count(bench: Bench) -> None:
    """Something in between answers every query with nothing: nothing is concluded from that."""
    nothing = Answer(200, {"x-ms-request-charge": "1"}, '{"_rid":"x","Documents":[],"_count":0}')
    bench.proxy.add(nothing, "query")
    found = bench.rewrap("verify", "--to", "v2")
    assert found.code == 1, found.out + found.err
    assert "no number" in found.err
    assert "complete" not in found.out


ODD = [
    "a/b",
    ".",
    "..",
    "../x",
    "a\\b",
    "/",
    "cut\ud83d",
    "\udc00",
    "a?b",
    "a#b",
    "a%2Fb",
    "%2e%2e",
    "é ",
    "a b+c",
]


@pytest.mark.parametrize("partition", ["/owner", "/id"])
def test_an_id_that_no_request_can_name_is_one_bad_row(
    cosmos: CosmosDatabase, tmp_path: Path, partition: str
) -> None:
    """Whatever stands first in the container: it is put aside, everything else is rotated, nothing ends."""
    bench = CosmosBench(tmp_path, cosmos)
    cosmos.container("notes", partition)
    cosmos.upsert("notes", *({"id": name, "owner": "o", "body": box(f"odd {name!a}")} for name in ODD))
    cosmos.upsert("notes", *({"id": f"n{at}", "owner": "o", "body": box(f"n{at}")} for at in range(9)))
    bench.job()
    before = bench.bodies_of()
    for command in (("plan", "--from", "v1", "--to", "v2"), ("check", "--from", "v1", "--to", "v2")):
        done = bench.rewrap(*command)
        assert done.code == 0, done.err
    assert bench.run("--dry-run").code == 0
    assert bench.bodies_of() == before
    ran = bench.run()
    assert ran.code == 3, ran.err
    aside = [event for event in ran.events if event["type"] == "quarantined"]
    assert {event["reason"] for event in aside} == {"rejected"}
    after = bench.bodies_of()
    left = {name for name, body in after.items() if body == before[name]}
    assert left == {"a/b", ".", "..", "../x", "a\\b", "/", "cut\ud83d", "\udc00"}
    assert len(aside) == len(left)
    for name in set(after) - left:
        plain = f"odd {name!a}" if name in ODD else name
        assert unbox(after[name], {"v2": KEYS["v2"]}) == plain.encode()
    verified = bench.rewrap("verify", "--to", "v2", "--deep", "--json")
    assert verified.code == 3, verified.err
    (told,) = (event["classes"] for event in verified.events if event["type"] == "field_verdict")
    assert {name: count for name, count in told.items() if count} == {
        "current": len(after) - len(left), "quarantined": len(left),
    }  # fmt: skip
    listed = bench.rewrap("quarantine", "list", "--json")
    assert (listed.code, len(listed.out.splitlines())) == (0, len(left)), listed.err
    assert bench.rewrap("quarantine", "list").code == 0
    shown = bench.rewrap("quarantine", "show", "--keys")
    assert (shown.code, shown.out.count("reason: rejected")) == (0, len(left)), shown.err
    rows = [json.loads(entry)["row_id"] for entry in listed.out.splitlines()]
    retried = bench.rewrap("quarantine", "retry", "--row", next(row for row in rows if "cut" in row))
    assert retried.code == 3, retried.err
    assert bench.run().code == 3
    assert bench.bodies_of() == after


def test_a_partition_key_that_is_no_text_is_no_end(cosmos: CosmosDatabase, tmp_path: Path) -> None:
    """Half a character in a partition key, and in what a value is bound to: it is rotated as any other."""
    bench = CosmosBench(tmp_path, cosmos)
    cosmos.container("notes", "/owner")
    bound = '{ column = "meta", layout = "aead" }'
    layout = JOB[JOB.index("[layouts.aead]") : JOB.index("[pace]")].replace("{owner.id}/{id}", "{owner}")
    bench.job(f'[[targets]]\ncontainer = "notes"\nfields = [{bound}]\n', layout)
    told = {"cut\ud83d": "cut\ufffd", "\udc00": "\ufffd", "a/b": "a/b", "whole": "whole"}
    cosmos.upsert(
        "notes",
        *(
            {"id": f"n{at}", "owner": owner, "meta": aead("x", text, "v1")}
            for at, (owner, text) in enumerate(told.items())
        ),
    )
    ran = bench.run()
    assert ran.code == 0, ran.err
    for each in cosmos.documents("notes"):
        assert unaead(each["meta"], told[each["owner"]], {"v2": KEYS["v2"]}) == b"x"
    assert bench.rewrap("verify", "--to", "v2", "--deep").code == 0


def test_an_element_without_a_version_is_told_by_a_dry_run(cosmos: CosmosDatabase, tmp_path: Path) -> None:
    """The element beside it is resealed all the same; the row is what is left of it."""
    bench = CosmosBench(tmp_path, cosmos)
    cosmos.container("notes", "/owner")
    bare = box("x", "v1").partition(":")[2]
    good = {"w": bare, "kid": "v1"}
    cosmos.upsert("notes", *({"id": f"n{at}", "owner": "o", "a": [good, {"w": bare}]} for at in range(5)))
    cosmos.upsert("notes", {"id": "good", "owner": "o", "a": [good, good]})
    field = '{ column = "a", path = "[*].w", layout = "bare", version = { path = "[*].kid" } }'
    layout = '[layouts.bare]\nencoding = "base64"\ncipher = "secretbox"\n'
    bench.job(f'[[targets]]\ncontainer = "notes"\nfields = [{field}]\n', layout)
    rehearsed, ran = bench.run("--dry-run"), bench.run()
    assert (rehearsed.code, ran.code) == (3, 3), rehearsed.err + ran.err
    (told,) = rehearsed.event("run_ended")["outcomes"]["notes"].values()
    assert told == {"resealed": 1, "unmarked": 5}
    verified = bench.rewrap("verify", "--to", "v2", "--json").event("field_verdict")["classes"]
    assert {name: count for name, count in verified.items() if count} == {"current": 1, "unmarked": 5}


def test_a_document_that_the_server_does_not_know_by_its_place_is_one_bad_row(bench: Bench) -> None:
    """400 to each request that names it, large or not: it is looked for by a query, and put aside alone."""
    for name in ("n077", "n078"):
        for kind in ("read", "patch", "replace"):
            bench.proxy.add(Answer(400), kind, path=f"/{name}$")
    large = {**bench.note(78), "body": box("x" * 20_000)}
    bench.database.upsert("notes", large)
    (bench.folder / "rewrap.toml").write_text(JOB.replace("batch_size = 40", "max_value_bytes = 10_000"))
    ended = bench.run()
    assert ended.code == 3, ended.err
    aside = {(event["row"], event["field"], event["reason"]) for event in ended.events if "reason" in event}
    assert {(row[2:6], field, reason) for row, field, reason in aside} == {
        ("n077", "body", "rejected"), ("n077", "meta.title", "rejected"),
        ("n077", "tags.[*].text", "rejected"),
        ("n078", "body", "too_large"), ("n078", "meta.title", "rejected"),
        ("n078", "tags.[*].text", "rejected"),
    }  # fmt: skip
    bench.check_opens(bench.notes(), but=("n077", "n078"))
    verified = bench.rewrap("verify", "--to", "v2", "--json")
    assert verified.code == 3, verified.err
    told = [event["classes"]["quarantined"] for event in verified.events if event["type"] == "field_verdict"]
    assert told == [2, 2, 2]
