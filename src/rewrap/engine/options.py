"""How a run is to go; none of it changes what a value may become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Choices of one run.

    `sample` is how many rows of each table to do before stopping at a checkpoint; `restart` reads from the
    start whatever the checkpoint says; `resume` refuses to begin a new run; `sweeps_only` does only what is
    still in scope of a finished run; `abandon` names an unfinished run to give up. `to_fingerprint`,
    `allow_unseen_target` and `allow_unopenable_target` say how the new key is vouched for. `compromised` says
    that the old key is known to others: the report then says what a rotation cannot mend. `quiesced` says
    that nobody else is at work in the tables whose readers know one key only. `note` is what the operator
    has to say of it, for the rotation log.
    """

    sample: int | None = None
    restart: bool = False
    resume: bool = False
    sweeps_only: bool = False
    abandon: str | None = None
    to_fingerprint: str | None = None
    allow_unseen_target: bool = False
    allow_unopenable_target: bool = False
    compromised: bool = False
    quiesced: bool = False
    note: str = ""
