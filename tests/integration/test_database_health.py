"""A run heeds the database it works on: others at work there, replicas, locks, probes of the job."""

from __future__ import annotations
