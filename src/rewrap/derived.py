"""Where each figure of a forecast comes from: measured by runs, assumed, counted, or a quota."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewrap.learned import Kind, Outlook

_LEARNED = {
    "seconds": "reading, sealing, writing",
    "wal_bytes": "what others wrote included, and pages after checkpoints; low: row width, indexes",
    "request_units": "a patch, and verification; reading: measured now",
    "remote_calls": "a value; high: proof, repeats",
}
"""What of a figure earlier runs have measured."""

_ASSUMED = {
    "seconds": "measured now: reading, opening, sealing; assumed: 3 to 120 µs a row to write, "
    "0.6 to 5 ms a patch",
    "wal_bytes": "row width, indexes; high: pages after checkpoints, index splits, vacuum",
    "growth_bytes": "rows that leave their page, index entries; until vacuum",
    "dead_rows": "rows in scope; low: what is cleared on the way",
    "opens": "each value, and each new one before it is sent; high: batches repeated",
    "seals": "each value; high: batches repeated after a stop",
    "remote_calls": "none: the keys are in the process",
    "request_units": "measured now: reading; assumed: 6 to 20 a patch, of documents of about 1 KB",
}
"""Where a figure comes from that no run has measured yet."""

_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "seconds": ("measured", "assumed"),
    "wal_bytes": ("counted",),
    "growth_bytes": ("counted",),
    "dead_rows": ("counted",),
    "opens": ("counted",),
    "seals": ("counted",),
    "remote_calls": ("counted",),
    "request_units": ("measured", "assumed"),
}
"""What such a figure is: `measured` by the command itself, `counted` by the catalog and a census."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """Where a figure comes from: in words, of which kinds, and the runs that measured it, newest first."""

    said: str
    kinds: tuple[Kind, ...]
    runs: tuple[str, ...] = ()


def derivations(outlooks: Sequence[Outlook], calls_from: str = "") -> dict[str, Derivation]:
    """Where the figures of some tables together come from. `calls_from` says it of calls to a vault."""
    return {name: _derived(name, outlooks, calls_from) for name in _ASSUMED}


def _derived(name: str, outlooks: Sequence[Outlook], calls_from: str) -> Derivation:
    assumed = calls_from if name == "remote_calls" and calls_from else _ASSUMED[name]
    runs = tuple(dict.fromkeys(run for one in outlooks for run in one.runs.get(name, ())))
    quotas = list(dict.fromkeys(said for one in outlooks for said in one.quotas.get(name, ())))
    if name == "seconds" and calls_from:
        quotas.append(calls_from.rpartition("; at ")[2])
    measured = sum(1 for one in outlooks if name in one.runs)
    kinds: list[Kind] = []
    parts = []
    if quotas:
        kinds.append("quota")
        parts.append(f"kept to: {', '.join(quotas)}")
    if runs:
        kinds.append("measured")
        parts.append(f"measured by {runs_said(runs)}: {_LEARNED[name]}")
    if measured < len(outlooks) or not outlooks or not runs:
        kinds += [kind for kind in _KINDS[name] if kind not in kinds]
        rest = f"of {len(outlooks) - measured} tables: " if measured else ""
        parts.append(rest + assumed)
    elif name == "remote_calls" and calls_from:
        kinds.append("counted")
    return Derivation("; ".join(parts), tuple(kinds), runs)


def runs_said(runs: Sequence[str]) -> str:
    """`run 3f2a9c`, `run 3f2a9c and 2 before it`."""
    return f"run {runs[0]}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
