"""The ledger's tables. `SCHEMA_NUMBER` goes up with every change; see docs/adr/0002-ledger.md."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_NUMBER = 4

metadata = sa.MetaData()

meta = sa.Table(
    "rewrap_meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

runs = sa.Table(
    "rewrap_run",
    metadata,
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("job", sa.String(64), nullable=False),
    sa.Column("job_digest", sa.String(64), nullable=False),
    sa.Column("from_versions", sa.Text, nullable=False),
    sa.Column("to_version", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("state_by", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    # {"v1": commitment}: hashes of the keys, by which every process proves that it holds the same ones
    sa.Column("commitments", sa.JSON, nullable=False),
    sa.Column("started_at", sa.String(32), nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
    # a monotonic order of runs: two may start within one clock tick
    sa.Column("number", sa.Integer, nullable=False),
)

progress = sa.Table(
    "rewrap_progress",
    metadata,
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("relation", sa.String(300), primary_key=True),
    sa.Column("sweep", sa.Integer, primary_key=True),
    sa.Column("rows_estimated", sa.BigInteger, nullable=False),
    sa.Column("rows_done", sa.BigInteger, nullable=False),
    sa.Column("found", sa.BigInteger, nullable=False),
    sa.Column("tally", sa.JSON, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
    sa.Column("rows_per_s", sa.Float, nullable=False),
    sa.Column("waiting_for", sa.Text, nullable=False),
    # rows the server had counted as inserted and deleted when the sweep began
    sa.Column("inserted_before", sa.BigInteger, nullable=False),
    sa.Column("deleted_before", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
)

relations = sa.Table(
    "rewrap_relation",
    metadata,
    # what a run worked on: a partition that was detached since is known by its oid, whatever its name
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("oid", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("relation", sa.String(300), nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
)

exceptions = sa.Table(
    "rewrap_exception",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("to_version", sa.String(200), primary_key=True),
    sa.Column("relation", sa.String(300), primary_key=True),
    sa.Column("field", sa.String(200), primary_key=True),
    # the text of the row's key; of a very long one its beginning and a hash, and the whole in row_key
    sa.Column("row_id", sa.String(400), primary_key=True),
    sa.Column("row_key", sa.Text),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("run_id", sa.String(32), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
)

proofs = sa.Table(
    "rewrap_proof",
    metadata,
    # how many stored values of a column a key has opened, by a hash of the key's commitment and the column
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("opened", sa.BigInteger, nullable=False),
)

seals = sa.Table(
    "rewrap_seals",
    metadata,
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("sealed", sa.BigInteger, nullable=False),
)

fingerprints = sa.Table(
    "rewrap_fingerprint",
    metadata,
    # what a run must leave as it is, as it was before the first write: rows, and SHA-256 over their entries
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # what the job asked for, and what that was then: table, key and columns, as JSON
    sa.Column("declared", sa.Text, nullable=False),
    sa.Column("witnessed", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("taken_at", sa.String(32), nullable=False),
)

fingerprint_rows = sa.Table(
    "rewrap_fingerprint_rows",
    metadata,
    # the sorted entries of a fingerprint, 32 bytes a row, cut into parts of about 256 KiB
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("entries", sa.LargeBinary, nullable=False),
)

control = sa.Table(
    "rewrap_control",
    metadata,
    # what somebody wants of the job's running process: state is "run", "pause" or "cancel"
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("run_id", sa.String(32), nullable=False),
    # goes up with every wish, so that each is seen
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("state_by", sa.Text, nullable=False),
    sa.Column("state_at", sa.String(32), nullable=False),
    # null: nobody has asked; a max_rate of 0: no rate is to be kept
    sa.Column("max_rate", sa.Float),
    sa.Column("batch_size", sa.Integer),
    sa.Column("in_flight", sa.Integer),
    sa.Column("tuned_by", sa.Text, nullable=False),
    sa.Column("tuned_at", sa.String(32), nullable=False),
    # what the process answers: the last wish it has taken up, a sign of life, and what it keeps to
    sa.Column("seen", sa.BigInteger, nullable=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("beat_at", sa.String(32), nullable=False),
    sa.Column("process", sa.Text, nullable=False),
    sa.Column("budgets", sa.JSON, nullable=False),
)

buckets = sa.Table(
    "rewrap_bucket",
    metadata,
    # one budget that several processes share: the time, in seconds of the server's clock, at which all that
    # was taken from it so far will have come back
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("unit", sa.String(16), nullable=False),
    sa.Column("rate", sa.Float, nullable=False),
    sa.Column("taken_until", sa.Float, nullable=False),
)

measured = sa.Table(
    "rewrap_measured",
    metadata,
    # what each run of the job has measured of a table, by name of the figure; "" is the run as a whole
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("relation", sa.String(300), primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
    # rows or values that it is an average over
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("measured_at", sa.String(32), nullable=False),
)
