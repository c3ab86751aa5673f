"""What a run says while it works: frozen events, which are also the `--json` schema.

Each becomes one line `{"type": …, "schema": 1, …}`. Fields may be added, never changed or removed. No event
holds plaintext, a key, a stored value or the password of a URL.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

SCHEMA = 1
"""Version of the event schema; raised only if a field had to change its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    type: ClassVar[str] = "event"

    def as_json(self) -> dict[str, Any]:
        """The event as a JSON object: `type` and `schema` first."""
        shown = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"type": self.type, "schema": SCHEMA, **shown}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run begins, or goes on. `fingerprints` are of the keys by version; `targets` the tables.

    `text_fingerprints` are of the texts that keys are kept as, `quiesced` the tables that nobody else is said
    to work in.
    """

    type: ClassVar[str] = "run_started"
    run_id: str
    job: str
    from_versions: list[str]
    to_version: str
    targets: list[str]
    fingerprints: dict[str, str]
    resumed: bool
    dry_run: bool
    text_fingerprints: dict[str, str] = field(default_factory=dict)
    quiesced: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something the operator should know: `level` is info or warning."""

    type: ClassVar[str] = "notice"
    level: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered(Event):
    """Somebody elsewhere took a hand in the run: `asked` is pause, resume, cancel or tune.

    `state` is what the run is now, pausing and then paused; the rest is the pace that is asked of it.
    """

    type: ClassVar[str] = "steered"
    run_id: str
    asked: str
    by: str
    state: str
    max_rate: float | None
    batch_size: int
    in_flight: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStarted(Event):
    """A sweep over one table begins. Sweep 1 reads every row, later ones what is in scope."""

    type: ClassVar[str] = "sweep_started"
    target: str
    sweep: int
    rows_estimated: int
    rows_done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """How far a table is: rows read, values by outcome, rows per second, and what holds it back.

    `stale_left` is an estimate; `eta_s` is seconds, None while unknown; `waiting_for` says why it is not
    faster: reads, cpu, writes, row locks, reconnecting.
    """

    type: ClassVar[str] = "progress"
    target: str
    sweep: int
    rows_done: int
    rows_estimated: int
    resealed: int
    quarantined: int
    stale_left: int | None
    rows_per_s: float
    eta_s: float | None
    waiting_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepDone(Event):
    """A sweep over one table ended; `found` is how many values it found in scope, `outcomes` by field.

    `probed` is as in RunEnded.
    """

    type: ClassVar[str] = "sweep_done"
    target: str
    sweep: int
    rows_done: int
    found: int
    outcomes: dict[str, dict[str, int]]
    seconds: float
    probed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined(Event):
    """A value went to quarantine. Where, and why; never what. `row` is masked for text keys."""

    type: ClassVar[str] = "quarantined"
    target: str
    row: str
    field: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldVerdict(Event):
    """Verify's independent count of one column, in one snapshot."""

    type: ClassVar[str] = "field_verdict"
    target: str
    field: str
    values: int
    classes: dict[str, int]
    versions: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintTaken(Event):
    """What a run must leave as it is, as it was before the first write. No columns: whole rows."""

    type: ClassVar[str] = "fingerprint_taken"
    target: str
    columns: list[str]
    rows: int
    fingerprint: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Untouched(Event):
    """What became of it since: rows that are the same, that differ, that are new, that are gone.

    `since` is when the first fingerprint was taken. Who wrote what differs is not known.
    """

    type: ClassVar[str] = "untouched"
    target: str
    columns: list[str]
    since: str
    rows_before: int
    rows: int
    unchanged: int
    changed: int
    inserted: int
    deleted: int
    fingerprint_before: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Event):
    """What verify found over every target. `complete` only when everything that must be 0 is 0.

    `untouched` sums up what was compared with fingerprints: empty where nothing was.
    """

    type: ClassVar[str] = "verdict"
    complete: bool
    deep: bool
    to_version: str
    values: int
    stale: int
    unmarked: int
    other_version: int
    plaintext: int
    quarantined: int
    waived: int
    deferred: int
    unopenable: int
    undecided: int = 0
    misindexed: int = 0
    reasons: list[str] = field(default_factory=list)
    log_position: str = ""
    origin: str = ""
    counted: str = "in one snapshot"
    untouched: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """A run came to an end or a stop. `state` is the run's; `exit_code` what the process returns.

    `spent` is what this process used up of what is metered, by unit: `request_units`, `vault_calls`.
    `probed` are values that name no version, and whose key this process has found: `opened` in all, and those
    that the key tried `first` has opened.
    """

    type: ClassVar[str] = "run_ended"
    run_id: str
    state: str
    exit_code: int
    outcomes: dict[str, dict[str, dict[str, int]]]
    rows: int
    values: int
    resealed_late: int
    sweeps: int
    seconds: float
    rows_per_s: float
    reasons: list[str] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    probed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Event):
    """One thing that a check found. `severity` is error, warning or info; a `code` keeps its meaning."""

    type: ClassVar[str] = "finding"
    severity: str
    code: str
    subject: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked(Event):
    """The end of a check: how many findings of each severity, and the fingerprints of the keys at hand."""

    type: ClassVar[str] = "checked"
    job: str
    targets: list[str]
    errors: int
    warnings: int
    infos: int
    fingerprints: dict[str, str]
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFound(Event):
    """A column whose values look like ciphertext, a hash or a token. `column` may have a path: `doc.a[*].b`.

    `marker` is a template, with `{version}`. `parts` are columns that hold a nonce, a tag or a version of it.
    `undecided` are columns that may hold its version: a person has to say. `opens` are the layouts that
    opened sampled values, `fits` those that could.
    """

    type: ClassVar[str] = "column_found"
    table: str
    column: str
    likeness: str
    form: str
    in_job: bool
    marker: str | None
    encoding: str | None
    versions: dict[str, int]
    sampled: int
    share: float
    length_min: int
    length_max: int
    parts: dict[str, str]
    undecided: list[str]
    opens: list[dict[str, Any]]
    fits: list[str]
    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSkipped(Event):
    """A column that was not looked at, and why: what is in it is not known."""

    type: ClassVar[str] = "column_skipped"
    table: str
    column: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered(Event):
    """The end of a search: columns looked at, and how many look like ciphertext and are in no job."""

    type: ClassVar[str] = "discovered"
    tables: int
    columns: int
    ciphertext: int
    doubtful: int
    skipped: int
    written: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyListed(Event):
    """A key version, as its keeper tells of it; `fingerprint` is None where the key cannot be had.

    `holds` says of the stored values what share is under it, as the newest run left them: all, some or none,
    None where no run tells; `values` how many, if they were counted. `permissions` have `verb`, `permission`
    and `allowed`, None for what only doing it would tell.
    """

    type: ClassVar[str] = "key_listed"
    version: str
    current: bool | None
    labels: list[str]
    usable: bool
    state: str
    created: str | None
    fingerprint: str | None
    fingerprint_of: str
    permissions: list[dict[str, Any]]
    holds: str | None
    values: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysListed(Event):
    """The end of a list of key versions; `run_id` and `run_state` are of the newest run, if there was one."""

    type: ClassVar[str] = "keys_listed"
    job: str
    provider: str
    versions: int
    usable: int
    run_id: str | None
    run_state: str | None
    run_at: str | None
    counted: bool
