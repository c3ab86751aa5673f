"""The JSON Schema of job files: what the sections check, with a sentence on every field for an editor."""

from __future__ import annotations

from typing import Any

from rewrap.job import Job

DRAFT = "https://json-schema.org/draft/2020-12/schema"

DESCRIPTIONS: dict[str, dict[str, str]] = {
    "Job": {
        "name": "Names the job and its ledger: letters, digits, `.`, `_`, `-`.",
        "stores": "The databases, each under a name of your choice.",
        "keys": "The key versions.",
        "layouts": "Stored formats, beside the built-in ones.",
        "targets": "The tables, each once.",
        "deks": "Where the records of DEKs are, by name.",
        "pace": "How hard a run works. May change at any time.",
        "limits": "When a run gives up or waits. May change at any time.",
        "untouched": "Tables that are no targets, and are proved to stay as they are.",
        "probe": "Questions to the application, asked by check and after a run.",
        "indexes": "How blind indexes are computed, by name.",
        "audit": "Where the record of every run goes.",
    },
    "PostgresStore": {
        "kind": '"postgres".',
        "url": "A URL of the primary itself; `${DATABASE_URL}` keeps the password out of the file.",
        "password": "Where the password is, when the URL has none.",
        "guard_schema": "The schema for rewrap's lock and checkpoints.",
        "max_connections": "Connections of a run: two for each shard at work, and four more.",
        "lock_timeout_ms": "Milliseconds that a batch waits for a lock on a row or table.",
    },
    "CosmosStore": {
        "kind": '"cosmos".',
        "endpoint": "The account's endpoint: `${COSMOS_ENDPOINT}`.",
        "database": "The database in the account.",
        "key": "Where the account's key is; without it, azure-identity's default credential is used.",
        "guard_container": "The container for rewrap's lock and checkpoints, with partition key /relation.",
        "in_flight": "Requests on their way at a time.",
        "max_rus": "Request units that a run takes at most, a second.",
        "share": "The share of the provisioned throughput that a run takes at most: 0.5 is half of it.",
        "processes": "Processes that send what is written; more than one are workers of the run's own.",
        "low_priority": "Whether requests say that others go first.",
        "throughput_bucket": "The throughput bucket that requests belong to.",
        "settle_s": "Seconds between two clean counts where consistency is below Strong.",
    },
    "Keys": {
        "provider": "Who keeps the keys: `local`, or one of those of docs/keys.md.",
        "versions": "Local keys: one table for each version, by the name that stands in stored values.",
        "vault": "The vault's address; `${AZURE_KEYVAULT_URL}` takes it from the environment.",
        "name": "The key's name in the vault.",
        "aws-secrets-manager": "A secret whose versions are the key's.",
        "aws-kms": "Symmetric keys in AWS KMS.",
        "files": "Files that are mounted, a version each or all in one.",
        "pkcs11": "AES keys in a token.",
        "vault-transit": "A key of Vault's or OpenBao's transit engine.",
        "max_calls_per_s": "Calls to the vault a second at most; without it, the service's limit.",
        "in_flight": "Calls to the vault under way at once.",
        "patience_s": "Seconds that the vault may throttle or not answer.",
        "recheck_s": "Seconds between two looks, during a run, at whether its keys are still there.",
        "reopen": "The share of new values that the vault opens again before they are written.",
    },
    "AwsSecret": {
        "secret": "The secret's name or ARN; its versions are the key's.",
        "field": "The member of a JSON object that holds the key.",
        "encoding": "How the key is written there.",
        "region": "The region; without it, that of the environment.",
        "endpoint": "Another address of the service: a VPC endpoint, say.",
        "profile": "The profile in AWS's own configuration.",
        "role": "The ARN of a role to assume for every call.",
        "fallback_role": "The ARN of a role to assume for versions that may not be read otherwise.",
    },
    "AwsKms": {
        "keys": "A key's id, ARN or alias, by the name that stands for it as a version.",
        "region": "The region; without it, that of the environment.",
        "endpoint": "Another address of the service: a VPC endpoint, say.",
        "profile": "The profile in AWS's own configuration.",
        "role": "The ARN of a role to assume for every call.",
    },
    "KeyFiles": {
        "path": "A file for each version, with `{version}` in its path; or a JSON file of all versions.",
        "field": "The member of a JSON object in each that holds the key.",
        "encoding": "How keys are written there.",
        "labels": "Where files are named by what they are for: each one's key and version, by its name.",
    },
    "FileLabel": {
        "key": "The file with the key.",
        "version": "The file with the key's version, or `env:NAME`.",
    },
    "Pkcs11": {
        "module": "The path of the token's PKCS#11 library.",
        "token": "The token's label.",
        "pin": "`env:NAME` or `file:PATH`: where the user's PIN is.",
        "label": "The label of a version's key, with `{version}` in it.",
    },
    "Transit": {
        "address": "The server's address.",
        "name": "The key's name in the transit engine.",
        "token": "`env:NAME` or `file:PATH`: where the token is.",
        "mount": "Where the engine is mounted.",
        "namespace": "The namespace, where the server has them.",
    },
    "KeyVersion": {
        "material": "`env:NAME` or `file:PATH`; a key itself never stands in a job file.",
        "encoding": "How the key is written there.",
        "index": "Where the secret for blind indexes is, if it is another one.",
    },
    "IndexKind": {
        "kind": "`ciphersweet`, `lockbox` or `hmac-sha256`.",
        "name": "What the index's key is derived for.",
        "bits": "How many bits of the digest are kept, from its beginning.",
        "encoding": "How the digest is stored.",
        "normalize": "What is done to a value before: `none`, `strip`, `lowercase`, `strip lowercase`.",
        "slow": "Argon2id instead of BLAKE2b, for `ciphersweet`.",
        "passes": "Passes of Argon2id.",
        "memory_kib": "Memory of Argon2id, in KiB.",
        "info": "What the key is derived for, besides its name.",
        "table": "The table that the key is derived for, where it is not the target's.",
        "column": "The column that the key is derived for, where it is not the field's.",
    },
    "LayoutSection": {
        "like": "A built-in layout that gives what is not said here.",
        "marker": "What values begin with, with `{version}` in it; empty for values without one.",
        "version": "A regular expression that versions match as a whole, without groups.",
        "encoding": "How the payload is stored: as text in an encoding, or raw in a column of bytes.",
        "cipher": "How it is sealed.",
        "aad": "Associated data from columns of the row: `{tenant_id}`.",
        "order": "The order of nonce, ciphertext and tag; `|` where the separator stands.",
        "separator": "What stands between parts of a payload.",
        "nonce_bytes": "The length of the nonce, where it is not the cipher's usual one.",
        "kdf": "How the key is derived from the secret.",
        "framing": "A format that is more than a marker and a payload: JWE, a JSON document, and the like.",
        "foreign": "What other values have before the version: `a[0-9]+[.]k`. Counted, never touched.",
        "plaintext": "What plaintexts look like: required for ciphers that cannot tell a wrong key.",
    },
    "TargetSection": {
        "table": "`notes`, or `schema.notes`.",
        "container": "The container, in a Cosmos store.",
        "key": "The column or columns that rows are found by; the primary key.",
        "fields": "The encrypted values of a row.",
        "store": "The store's name, where the job has more than one.",
        "unmarked": "What becomes of values without a marker that open under a known key.",
        "acknowledge": "Hazards that were looked into and are harmless.",
        "quiesced": "Its readers know one key only: a run wants --acknowledge-quiesced.",
        "untouched": "What of it must stay as it is: columns and paths, or `*` for every other column.",
        "dek": "The `[deks.NAME]` with the records of the DEKs that the values are under.",
        "plaintext": "What becomes of plaintext in a target with a dek.",
    },
    "UntouchedSection": {
        "table": "The table; it is no target.",
        "container": "The container, in a Cosmos store.",
        "store": "The store's name, where the job has more than one.",
        "key": "The column or columns that rows are told by; the primary key.",
        "columns": "The columns and paths that must stay as they are; without any, all.",
    },
    "DekSection": {
        "table": "The table of the records.",
        "container": "The container of the records, in a Cosmos store: in place of `table`.",
        "store": "The store's name, where the job has more than one.",
        "id": "The column or property of a record's id.",
        "wrapped": "Where a record holds its DEK, and how it is wrapped.",
        "holds": "What that opens to: the DEK's bytes, or a text of them.",
        "copied": "Columns or properties that a new record has as the old one.",
        "given": "Columns or properties that a new record has besides, with their values.",
        "new_id": "The id of a new record, with `{uuid}` in it.",
        "referenced_by": "Places that name DEKs: each id there must have a record.",
    },
    "ReferenceSection": {
        "table": "The table that names DEKs.",
        "container": "The container that names DEKs, in a Cosmos store: in place of `table`.",
        "store": "The store's name, where the job has more than one.",
        "column": "The column or property that ids stand in.",
        "path": "The path in it: `body.dekId`.",
    },
    "FieldSection": {
        "column": "The column that holds the value.",
        "layout": "A layout of this job, or a built-in one.",
        "path": "Where in a column of jsonb the value is: `patient.ssn`, `cards[*].number`.",
        "to_layout": "The layout that new values are stored in, when it is another one.",
        "version": "Where the version is, when it is stored apart from the value.",
        "dek_id": "Where the id of the value's DEK is, in a target with a dek.",
        "nonce": "Where the nonce is, when it is stored apart.",
        "tag": "Where the tag is, when it is stored apart.",
        "indexes": "Blind indexes that are written with the value.",
    },
    "PartSection": {
        "column": "The column that holds this part; that of the field, if only a path is named.",
        "path": "Where in a column of jsonb the part is.",
        "form": "How a version is written there, with `{version}` in it.",
    },
    "IndexSection": {
        "column": "The column that holds the blind index.",
        "index": "Which `[indexes.NAME]` computes it.",
    },
    "Pace": {
        "batch_size": "Rows a batch at most.",
        "batch_bytes": "Bytes a page holds at most, for each column.",
        "shards": "Key ranges at work at a time, over all tables.",
        "max_value_bytes": "A larger value in scope is put aside.",
        "max_rate": "Rows a second at most, of each store.",
        "in_flight": "Batches that may be written at once, in each store.",
        "pause_file": "While a file of this name is there, the run waits.",
        "target_s": "Seconds that a batch takes: while it takes longer, batches are made smaller.",
        "health": "What a Postgres server may come to before a run goes slower or waits.",
        "probe": "Numbers of your own that a run heeds.",
        "shared": "Budgets that jobs share over one ledger, by name.",
    },
    "Threshold": {
        "slow": "Above it a run goes slower.",
        "pause": "From it on a run waits.",
    },
    "Health": {
        "yield_to_others": "Whether little is done while other sessions are at work on the server.",
        "replica_lag_s": "Seconds that a replica is behind.",
        "replica_lag_bytes": "Bytes of log that a replica has not replayed.",
        "wal_bytes_per_s": "Bytes of log that the server writes in a second.",
        "slot_bytes": "Bytes of log that a replication slot retains.",
        "dead_share": "Dead rows of a target's table, as a share of all rows.",
        "vacuum": "Whether a run goes at half its speed while a target's table is vacuumed.",
        "blocked": "Sessions that wait for a lock of the run.",
        "latency_s": "Seconds that the server takes for a look at itself.",
    },
    "LoadProbe": {
        "name": "What reasons call it.",
        "kind": "`sql` or `http`.",
        "query": "A query whose first value is the number.",
        "url": "A URL that answers with the number.",
        "slow": "Above it a run goes slower.",
        "pause": "From it on a run waits.",
        "every_s": "Seconds between two questions.",
        "timeout_s": "Seconds to wait for an answer.",
    },
    "SharedSection": {
        "store": "The store that draws on it; may be left out where there is only one.",
        "keys": "Whether the calls to the vault draw on it, and no store.",
        "rate": "What all may use together in a second: rows, request units, or calls.",
    },
    "Limits": {
        "max_quarantine": "Values of a version that may fail before its key is doubted.",
        "max_quarantine_share": "The same as a share of those tried; the larger counts.",
        "max_sweeps": "Sweeps of a table, the first included.",
        "drain_s": "Seconds that a run waits, in all, for open write transactions.",
        "lease_s": "Seconds that a table's lock outlives the last sign of life.",
        "reconnect_s": "Seconds to keep trying when the database or the ledger is away.",
        "changed_payloads": "Whether a row that must stay as it is, and differs, fails a verification.",
    },
    "ProbeSection": {
        "name": "What reports call it.",
        "kind": "Whom it asks: the database, a URL, or a program.",
        "timeout_s": "Seconds after which it has failed.",
        "query": "For `sql`: a query that reads one value.",
        "expect": "For `sql`: what the value must be.",
        "url": "For `http`: what is fetched, with GET.",
        "status": "For `http`: the status that must come.",
        "contains": "For `http`: text that must be in the answer.",
        "argv": "For `command`: the program and its arguments; no shell.",
        "exit_code": "For `command`: what it must exit with.",
    },
    "AuditSection": {
        "file": "A file that each run adds a line to; a relative path starts at the job file.",
        "webhook": "An https:// URL that each run's record is posted to.",
        "secret": "`env:NAME` or `file:PATH`: what records are signed with.",
        "timeout_s": "Seconds that one attempt to deliver may take.",
        "attempts": "How often a delivery is tried.",
        "rows": "Tables in Markdown that get a row for each rotation that completed.",
    },
    "RowSection": {
        "file": "The table's file; a relative path starts at the job file.",
        "columns": "Its columns in order: each a text with `{date}`, `{to_version}` and the like.",
    },
}
"""By section and field: one sentence. A field without one is shown by its name alone."""


def job_schema() -> dict[str, Any]:
    """The schema of a job file as an editor takes it."""
    found = Job.model_json_schema()
    sections = {"Job": found, **found.get("$defs", {})}
    for section, schema in sections.items():
        # a docstring's first paragraph is what an editor has room for
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split("\n\n")[0].split())
        for name, said in schema.get("properties", {}).items():
            described = DESCRIPTIONS.get(section, {}).get(name)
            if described:
                said["description"] = described
        _admit_containers(schema)
        _admit_variables(schema)
    return {"$schema": DRAFT, **found, "title": "rewrap job file"}


def _admit_containers(schema: dict[str, Any]) -> None:
    """Where a container may stand in a table's place, one of the two is required."""
    if {"table", "container"} <= schema.get("properties", {}).keys() and "table" in schema.get(
        "required", []
    ):
        schema["required"].remove("table")
        schema["oneOf"] = [{"required": ["table"]}, {"required": ["container"]}]


def _admit_variables(schema: dict[str, Any]) -> None:
    """A provider, and a part of a name, may be a variable's: that is known only when the job is loaded."""
    name = schema.get("properties", {}).get("name")
    if name and name.get("pattern"):
        name["anyOf"] = [{"pattern": name.pop("pattern")}, {"pattern": r"\$\{"}]
    provider = schema.get("properties", {}).get("provider")
    if provider and "enum" in provider:
        names = {"enum": [*provider.pop("enum"), "env", "akv"]}
        provider["anyOf"] = [names, {"type": "string", "pattern": r"\$\{"}]
