"""The plots beside RESULTS.md: rows a second by size of the table, and by peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.journal import Line
from benchmarks.peers.roster import PEERS

mpl.use("svg")
# the same figures make the same file
mpl.rcParams.update({"svg.hashsalt": "rewrap", "svg.fonttype": "none", "font.size": 9})

from matplotlib import pyplot as plt  # noqa: E402 - after the choice of what it draws with

_OURS, _THEIRS = "#2b6cb0", "#a0aec0"


def draw(folder: Path, results: dict[str, list[Line]]) -> dict[str, str]:
    """Draws what there are results for; paths by bench, from the parent of the folder on."""
    drawn = {}
    for name, plot in {"scale": _scale, "peers": _peers}.items():
        lines = results.get(name, [])
        if lines and "rows_per_s" in lines[-1]:
            folder.mkdir(parents=True, exist_ok=True)
            figure = plot(lines)
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
            plt.close(figure)
            drawn[name] = f"{folder.name}/{name}.svg"
    return drawn


def _scale(lines: list[Line]) -> Any:
    """Rows a second and memory over the size of the table."""
    summary = lines[-1]
    figure, (speed, memory) = plt.subplots(2, sharex=True, figsize=(6, 5), height_ratios=(2, 1))
    sizes = summary["rows"]
    for field, label, style in (
        ("floor_rows_per_s", "the floor", {"color": _THEIRS}),
        ("sweep_rows_per_s", "first sweep", {"color": _OURS, "linestyle": ":"}),
        ("rows_per_s", "whole command", {"color": _OURS}),
    ):
        speed.plot(sizes, summary[field], marker="o", label=label, **style)
    speed.set(xscale="log", ylabel="rows/s")
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter("{x:,.0f}")
    speed.legend(frameon=False)
    memory.plot(sizes, summary["rss_mb"], marker="o", color=_OURS)
    memory.set(xlabel="rows of the table", ylabel="RSS MB")
    memory.set_ylim(0, 1.2 * max(summary["rss_mb"]))
    memory.set_xticks(sizes, [f"{size:,}" for size in sizes])
    memory.minorticks_off()
    for axes in (speed, memory):
        axes.grid(alpha=0.3)
    return figure


def _peers(lines: list[Line]) -> Any:
    """Rows a second of each, on a logarithmic scale."""
    rates = lines[-1]["rows_per_s"]
    titles = {"text": "rewrap, AES-GCM", "secretbox": "rewrap, secretbox", "floor": "the floor (no cipher)"}
    titles |= {peer.name: peer.title for peer in PEERS}
    names = sorted(rates, key=rates.get)
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(names) + 1))
    bars = axes.barh(
        [titles.get(name, name) for name in names],
        [rates[name] for name in names],
        color=[_OURS if name in ("text", "secretbox") else _THEIRS for name in names],
    )
    axes.bar_label(bars, [f" {rates[name]:,.0f}" for name in names])
    axes.set(xscale="log", xlabel="rows/s", xlim=(min(rates.values()) / 2, max(rates.values()) * 3))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure
