"""The one error of the benchmarks."""


class BenchError(Exception):
    """A run failed, or left something wrong behind: its time means nothing."""
