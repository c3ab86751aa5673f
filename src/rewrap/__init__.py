"""Rotate encryption keys over live rows: resumable, compare-and-swap, verified.

job = Job.load("rewrap.toml")
ended = await run(job, from_versions="v1", to_version="v2")
found = await verify(job, to_version="v2", deep=True)
"""

from rewrap import errors
from rewrap.api import plan, resume, run, status, verify
from rewrap.engine.options import RunOptions
from rewrap.engine.pipeline import StopFlag
from rewrap.job import Job
from rewrap.keys.keyring import Key, Keyring

__version__ = "0.1.0"

__all__ = [
    "Job",
    "Key",
    "Keyring",
    "RunOptions",
    "StopFlag",
    "__version__",
    "errors",
    "plan",
    "resume",
    "run",
    "status",
    "verify",
]
