"""What a check says about one table: everything that would refuse, slow or enlarge a rotation of it.

The survey of a run has the last word on what is refused. It stops at the first reason; here the others are
looked for too, so that an owner hears all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import asyncpg

from rewrap.errors import SchemaMismatch, StoreError, UnsafeTarget
from rewrap.events import Finding
from rewrap.job import Job
from rewrap.model import Table
from rewrap.stores.postgres.connection import Connection, translated
from rewrap.stores.postgres.fields import written_columns
from rewrap.stores.postgres.places import quote
from rewrap.stores.postgres.schema import find_table, survey
from rewrap.stores.postgres.server import finding
from rewrap.stores.postgres.unnamed import unnamed_versions
from rewrap.targets import TargetSection

_TOPICS = {
    "row-level-security": "row-level security",
    "update-rule": "rule on update",
    "no-replica-identity": "replica identity",
    "before-trigger": "before update trigger",
    "no-privilege": "this role lacks",
    "no-table": "does not exist",
    "no-column": "has no column",
    "no-key": "unique",
    "nullable-key": "may be null",
    "key-type": "key column",
    "inherited": "child tables",
    "generated": "is generated",
    "column-type": "column",
    "kind": " is ",
}
"""What the survey's refusals speak of, the most telling words first. A code here names the finding."""


async def readable_tables(connection: Connection, job: Job, target: TargetSection) -> list[Table]:
    """The tables of a target that can at least be read; none where not."""
    try:
        one = job.model_copy(update={"targets": [target]})
        return [found.table for found in await survey(connection, one, writing=False)]
    except StoreError as exc:
        if not _answered(exc):
            raise
        return []


async def inspect_target(
    connection: Connection, job: Job, target: TargetSection
) -> tuple[list[Table], list[Finding]]:
    """The tables of a target, if a run would take them, and everything there is to say about each."""
    subject = f"table {target.table}"
    tables, refused = await _surveyed(connection, job, target, subject)
    found = list(refused)
    with translated(f'table "{target.table}"'):
        try:
            oid = await find_table(connection, target.table)
        except asyncpg.InsufficientPrivilegeError:
            # its schema is closed to this role, which the survey has said
            oid = None
        if oid is None:
            return [], found
        columns = written_columns(target)
        said = {one.code for one in refused}
        reasons = [one.reason for one in refused]
        for unnamed in await unnamed_versions(connection, job, target, oid):
            found.append(finding("warning", "version-column-unnamed", subject, unnamed.reason, unnamed.hint))
        here = [(t.oid, f"table {t.name}", tuple(column.name for column in t.key)) for t in tables]
        # what a table's own key is, where the job names none, the survey has said if it may not be read
        for leaf, about, key in here or [(oid, subject, tuple(target.key or ()))]:
            facts = await connection.fetchrow(_FACTS, leaf)
            # what the survey said already is not said twice
            hazards = [one for one in _hazards(facts, target, about) if one.code not in said]
            # a partition of a table that the job names is no news
            found += [one for one in hazards if leaf == oid or one.code != "part-of-another"]
            lacking = await _privileges(connection, leaf, key, target, job, about)
            found += [one for one in lacking if not any(one.reason in reason for reason in reasons)]
            found += await _triggers(connection, leaf, target, columns, about, said)
            if facts["relkind"] == "r":
                found += await _publications(connection, facts, about)
                found += await _constraints(connection, leaf, columns, about)
                found += await _indexes(connection, leaf, columns, facts, about)
    return tables, found


async def _surveyed(
    connection: Connection, job: Job, target: TargetSection, subject: str
) -> tuple[list[Table], list[Finding]]:
    """The survey's tables; or else its refusals, each field asked on its own."""

    async def ask(some: TargetSection) -> list[Table]:
        surveys = await survey(connection, job.model_copy(update={"targets": [some]}))
        return [one.table for one in surveys]

    try:
        return await ask(target), []
    except StoreError as exc:
        refusals = {exc.message: exc}
        if not _answered(exc):
            raise
    if len(target.fields) > 1:
        for entry in target.fields:
            try:
                await ask(target.model_copy(update={"fields": [entry]}))
            except StoreError as exc:
                if not _answered(exc):
                    raise
                refusals.setdefault(exc.message, exc)
    return [], [
        finding("error", _code(exc.message), subject, _without(exc.message, target.table), exc.hint)
        for exc in refusals.values()
    ]


def _answered(exc: StoreError) -> bool:
    """Whether it is about the table, and not about the way to it."""
    return isinstance(exc, SchemaMismatch | UnsafeTarget) or exc.sqlstate == "42501"


def _code(message: str) -> str:
    lowered = message.lower()
    return next((code for code, words in _TOPICS.items() if words in lowered), "refused")


def _without(message: str, table: str) -> str:
    """A message without the table it begins with: the finding names it already."""
    rest = message.removeprefix(f'table "{table}"')
    return rest.removeprefix(":").strip() if rest != message else message


def _hazards(facts: Connection, target: TargetSection, subject: str) -> Iterable[Finding]:
    if facts["rls_active"]:
        yield finding(
            "error", "row-level-security", subject,
            "row-level security applies to this role: rows would stay hidden",
            "use the table's owner or a role with BYPASSRLS",
        )  # fmt: skip
    elif facts["rls"]:
        yield finding(
            "info", "row-level-security", subject, "has row-level security, which does not apply to this role"
        )
    if facts["rules"]:
        yield finding(
            "error", "update-rule", subject,
            f"a rule on UPDATE ({', '.join(facts['rules'])}) may rewrite what rewrap writes",
            "drop the rule or use a trigger in its place",
        )  # fmt: skip
    if facts["published_without_identity"]:
        yield finding(
            "error", "no-replica-identity", subject,
            "is published without a replica identity: Postgres refuses updates",
            "ALTER TABLE … REPLICA IDENTITY FULL, or add a primary key",
        )  # fmt: skip
    if facts["parents"]:
        yield finding(
            "info", "part-of-another", subject,
            f"is a part of {', '.join(facts['parents'])}: a job may name that in its place",
        )  # fmt: skip


async def _privileges(
    connection: Connection, oid: int, key: Sequence[str], target: TargetSection, job: Job, subject: str
) -> list[Finding]:
    written = written_columns(target)
    bound = [
        name
        for entry in target.fields
        for layout in (job.layout(entry.layout), job.layout(entry.to_layout or entry.layout))
        for name in (layout.aad.columns if layout.aad else ())
    ]
    # xmin says whether a row is still the one that was read; a grant of columns does not include it
    read = [*key, *written, *bound, "xmin"]
    found = []
    for row in await connection.fetch(_PRIVILEGES, oid, list(dict.fromkeys(read)), written):
        found.append(
            finding(
                "error", "no-privilege", subject,
                f'this role lacks {row["privilege"]} on column "{row["attname"]}"',
                f"GRANT {row['privilege']} ({quote(row['attname'])}) ON … TO the role (see "
                "docs/privileges.md)",
            )
        )  # fmt: skip
    return found


async def _triggers(
    connection: Connection,
    oid: int,
    target: TargetSection,
    columns: Sequence[str],
    subject: str,
    said: set[str],
) -> list[Finding]:
    found = []
    for row in await connection.fetch(_TRIGGERS, oid, list(columns)):
        if row["before"]:
            read = "triggers" in target.acknowledge
            if not read and "before-trigger" in said:
                continue
            found.append(
                finding(
                    "info" if read else "error", "before-trigger", subject,
                    f'BEFORE UPDATE trigger "{row["tgname"]}" runs for every row that is resealed'
                    + (" (acknowledged)" if read else ", and may change or drop what rewrap writes"),
                    None
                    if read
                    else "read it; if it leaves the encrypted columns alone, set "
                    'acknowledge = ["triggers"] in the target',
                )
            )  # fmt: skip
            continue
        found.append(
            finding(
                "info", "after-trigger", subject,
                f'trigger "{row["tgname"]}" fires for every row that is resealed',
                "read what it does: mail, queues and audit tables would get one entry a row",
            )
        )  # fmt: skip
    return found


async def _publications(connection: Connection, facts: Connection, subject: str) -> list[Finding]:
    names = [
        row["pubname"] for row in await connection.fetch(_PUBLICATIONS, facts["nspname"], facts["relname"])
    ]
    if not names:
        return []
    whole = facts["relreplident"] == "f"
    return [
        finding(
            "info", "published", subject,
            f"is published ({', '.join(names)}): every resealed row goes to the subscribers"
            + (", with the whole old row before it (REPLICA IDENTITY FULL)" if whole else ""),
            "tell the subscribers' owners; what they copied under the old version stays with them",
        )
    ]  # fmt: skip


async def _constraints(
    connection: Connection, oid: int, columns: Sequence[str], subject: str
) -> list[Finding]:
    found = []
    for row in await connection.fetch(_CONSTRAINTS, oid, list(columns)):
        column = ", ".join(row["columns"])
        if row["contype"] == "f":
            found.append(
                finding(
                    "error", "foreign-key", subject,
                    f'foreign key "{row["conname"]}" compares column "{column}" with another table: a '
                    'resealed '
                    "value is another one",
                    "an encrypted column is no key to anything; drop the constraint",
                )
            )  # fmt: skip
        elif row["contype"] in ("u", "p", "x"):
            found.append(
                finding(
                    "warning", "unique-ciphertext", subject,
                    f'constraint "{row["conname"]}" compares values of column "{column}": each value '
                    'is sealed '
                    "anew, so it no longer finds two that are alike",
                    "if it was to keep plaintexts apart, that needs a blind index",
                )
            )  # fmt: skip
        else:
            found.append(
                finding(
                    "warning", "check-constraint", subject,
                    f'constraint "{row["conname"]}" speaks of column "{column}", and has to admit the '
                    'new values',
                    "the canary below tries one; a value that is refused is put aside, and the run goes on",
                )
            )  # fmt: skip
    for row in await connection.fetch(_DEPENDENT, oid, list(columns)):
        found.append(
            finding(
                "warning", "generated-from", subject,
                f'column "{row["attname"]}" is generated from column "{row["source"]}", and is '
                'written with it',
                "what it makes of the stored value changes with the value",
            )
        )  # fmt: skip
    for row in await connection.fetch(_COLLATIONS, oid, list(columns)):
        found.append(
            finding(
                "info", "collation", subject,
                f'column "{row["attname"]}" has a collation that finds different values equal; rewrap '
                'compares '
                "bytes, and is not misled",
            )
        )  # fmt: skip
    return found


async def _indexes(
    connection: Connection, oid: int, columns: Sequence[str], facts: Connection, subject: str
) -> list[Finding]:
    rows = await connection.fetch(_INDEXES, oid, list(columns))
    holding = [row for row in rows if row["holds"]]
    if not rows:
        return []
    listed = ", ".join(f"{row['name']} {_size(row['bytes'])}" for row in rows)
    if holding:
        names = ", ".join(f'"{row["name"]}"' for row in holding)
        return [
            finding(
                "warning", "indexed-column", subject,
                f"{names} hold{'s' if len(holding) == 1 else ''} an encrypted column: every resealed "
                "row adds "
                f"an entry to each of {len(rows)} index{'es' if len(rows) > 1 else ''} ({listed})",
                "an index over ciphertext finds nothing but the same ciphertext again; drop it if "
                "nobody looks "
                "values up by it, and REINDEX afterwards",
            )
        ]  # fmt: skip
    roomy = facts["fillfactor"] < 90
    return [
        finding(
            "info", "index-cost", subject,
            "no index holds an encrypted column; "
            + (
                f"pages have room (fillfactor {facts['fillfactor']}), so that most rows stay on theirs: "
                if roomy
                else "where a page is full, a resealed row moves to another, and adds an entry to each of "
            )
            + f"{len(rows)} index{'es' if len(rows) > 1 else ''} ({listed})",
        )
    ]  # fmt: skip


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 1024:,.0f} KiB"


async def longest_values(
    connection: Connection, table: Table, limited: Sequence[str], rows_max: int
) -> dict[str, int]:
    """The longest value, in characters, of columns with a length limit, over a bounded part of the table."""
    found = {}
    percent = 100.0 * rows_max / max(1, table.estimated_rows)
    sampled = f" TABLESAMPLE SYSTEM ({percent:.6f})" if percent < 100 else ""
    with translated(table.relation):
        for name in limited:
            found[name] = (
                await connection.fetchval(
                    f"SELECT max(char_length({quote(name)})) FROM {table.relation}{sampled}"
                )
                or 0
            )
    return found


async def length_limits(connection: Connection, table: Table, columns: Sequence[str]) -> dict[str, int]:
    """The characters that columns of a limited length take, by column."""
    with translated(table.relation):
        rows = await connection.fetch(_LIMITS, table.oid, list(columns))
    return {row["attname"]: row["most"] for row in rows}


async def may_make_temporary(connection: Connection) -> bool:
    with translated("database"):
        return bool(
            await connection.fetchval("SELECT has_database_privilege(current_database(), 'TEMPORARY')")
        )


_OF_COLUMNS = "a.attrelid = $1::int8::oid AND a.attname = ANY ($2::text[])"

_FACTS = """
SELECT n.nspname::text, c.relname::text, c.relkind::text AS relkind, c.relrowsecurity AS rls,
       c.relreplident::text AS relreplident,
       (c.relrowsecurity AND row_security_active(c.oid)) AS rls_active,
       ARRAY(SELECT r.rulename::text FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type = '2') AS rules,
       ARRAY(SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parents,
       coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions)
                  WHERE option_name = 'fillfactor'), 100) AS fillfactor,
       (EXISTS (SELECT FROM pg_publication_tables p JOIN pg_publication b USING (pubname)
                 WHERE p.schemaname = n.nspname AND p.tablename = c.relname AND b.pubupdate)
        AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS
             (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary))))
         AS published_without_identity
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::int8::oid
"""

_PRIVILEGES = """
SELECT a.attname::text, p.privilege
  FROM pg_attribute a, (VALUES ('SELECT', $2::text[]), ('UPDATE', $3::text[])) AS p(privilege, wanted)
 WHERE a.attrelid = $1::int8::oid AND a.attname = ANY (p.wanted)
   AND NOT has_column_privilege(a.attrelid, a.attnum, p.privilege)
 ORDER BY a.attnum, 2
"""

_TRIGGERS = """
SELECT tg.tgname::text AS tgname, (tg.tgtype & 2) <> 0 AS before
  FROM pg_trigger tg
 WHERE tg.tgrelid = $1::int8::oid AND NOT tg.tgisinternal AND tg.tgenabled IN ('O', 'A')
   AND (tg.tgtype & 16) <> 0
   AND (cardinality(tg.tgattr::int2[]) = 0 OR EXISTS (
         SELECT FROM pg_attribute a WHERE a.attrelid = tg.tgrelid
            AND a.attnum = ANY (tg.tgattr::int2[]) AND a.attname = ANY ($2::text[])))
 ORDER BY 1
"""

_PUBLICATIONS = """
SELECT DISTINCT pubname::text FROM pg_publication_tables WHERE schemaname = $1 AND tablename = $2 ORDER BY 1
"""

# a fence of rewrap's own is judged with the rotation's markers
_CONSTRAINTS = f"""
SELECT c.conname::text, c.contype::text AS contype, array_agg(a.attname::text ORDER BY a.attnum) AS columns
  FROM pg_constraint c JOIN pg_attribute a ON {_OF_COLUMNS} AND a.attnum = ANY (c.conkey)
 WHERE c.conrelid = $1::int8::oid AND c.contype IN ('c', 'f', 'u', 'p', 'x')
   AND NOT starts_with(c.conname::text, 'rewrap_fence_')
 GROUP BY 1, 2 ORDER BY 1
"""

_DEPENDENT = f"""
SELECT DISTINCT g.attname::text, a.attname::text AS source
  FROM pg_attribute a
  JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
   AND d.refobjsubid = a.attnum
  JOIN pg_attribute g ON g.attrelid = a.attrelid AND g.attgenerated <> '' AND g.attnum > 0
  LEFT JOIN pg_attrdef f ON f.adrelid = g.attrelid AND f.adnum = g.attnum
 WHERE {_OF_COLUMNS}
   AND ((d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid)
     OR (d.classid = 'pg_class'::regclass AND d.objid = g.attrelid AND d.objsubid = g.attnum))
 ORDER BY 1, 2
"""

_COLLATIONS = f"""
SELECT a.attname::text FROM pg_attribute a JOIN pg_collation k ON k.oid = a.attcollation
 WHERE {_OF_COLUMNS} AND NOT k.collisdeterministic ORDER BY 1
"""

_LIMITS = f"""
SELECT a.attname::text, a.atttypmod - 4 AS most FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE {_OF_COLUMNS} AND t.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 ORDER BY 1
"""

# by what the index depends on: its columns, those it includes, and those of its expressions and condition
_INDEXES = """
SELECT x.indexrelid::regclass::text AS name, pg_relation_size(x.indexrelid) AS bytes,
       EXISTS (SELECT FROM pg_depend d JOIN pg_attribute a
                 ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.indrelid
                  AND a.attname = ANY ($2::text[])) AS holds
  FROM pg_index x WHERE x.indrelid = $1::int8::oid AND x.indislive ORDER BY 1
"""
