"""peers: what people write for themselves, and what other tools do, on the same rows."""

from benchmarks.peers.bench import run

__all__ = ["run"]
