"""The house: imports go downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import rewrap

ROOT = Path(rewrap.__file__).parent

FLOORS = [
    [
        "errors",
        "model",
        "packed",
        "pace.gate",
        "pace.law",
        "pace.places",
        "pace.terms",
        "pace.vitals",
        "pace.foreground",
    ],
    [
        "crypto.ciphers",
        "crypto.elsewhere",
        "crypto.encodings",
        "crypto.layout",
        "crypto.layouts",
        "crypto",
        "events",
    ],
    ["recognise", "forecast", "metered", "learned", "derived", "labels", "pieces", "fingerprint"],
    ["interfaces", "targets", "untouched", "envelopes", "deks", "forms", "probes.section"],
    ["formats", "keysections", "storage", "limits", "pace", "joberrors", "audit.section", "job", "hints"],
    ["keys", "stores", "ledgers", "probes", "audit", "jobschema", "unfinished"],
    [
        "engine.health",
        "engine.retry",
        "engine.options",
        "engine.accounting",
        "engine.judged",
        "engine.linked",
        "engine.dekproof",
        "engine.dekring",
        "engine.elements",
        "engine.envelope",
        "engine.minting",
        "engine.reseal",
        "engine.probe",
        "engine.settle",
        "engine.compile",
        "engine.proof",
    ],
    ["engine", "verify", "witness", "dekcount", "opening", "verdict", "report", "progresstable"],
    ["rotations", "probed", "plan", "measure", "remaining", "queries", "check", "discover", "draft", "trial"],
    ["control"],
    ["api"],
    ["preflight", "keylist", "gate"],
    ["stages"],
    ["__init__", "__main__", "cli", "demo"],
]
"""From the ground up. A module may import from its own floor and from those below."""


def floor_of(module: str) -> int:
    """The floor of `rewrap.X.Y`, by its longest named prefix."""
    name = module.removeprefix("rewrap").removeprefix(".") or "__init__"
    best, floor = "", -1
    for number, names in enumerate(FLOORS):
        for named in names:
            if (name == named or name.startswith(named + ".")) and len(named) > len(best):
                best, floor = named, number
    assert floor >= 0, f"{module} is on no floor: give it one"
    return floor


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        name = f"rewrap.{dotted}".removesuffix(".__init__") if dotted != "__init__" else "rewrap"
        found[name] = path
    return found


def imports_of(path: Path, known: set[str]) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rewrap"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("rewrap")}
    return names


def test_imports_go_downwards_only() -> None:
    """No module imports from a floor above its own."""
    found = modules()
    upwards = [
        f"{module} (floor {floor_of(module)}) imports {other} (floor {floor_of(other)})"
        for module, path in found.items()
        for other in imports_of(path, set(found))
        if floor_of(other) > floor_of(module)
    ]
    # the command line may ask the package for its version
    assert [line for line in upwards if "imports rewrap (" not in line] == []


def test_verify_shares_nothing_with_the_engine() -> None:
    """Verify and its census import no module of the engine, and none that reads or writes for it."""
    found = modules()
    censuses = ("postgres.census", "postgres.dekcensus", "cosmos.census", "cosmos.counting", "cosmos.survey")
    for module in ("verify", "opening", "dekcount", "verdict", *(f"stores.{name}" for name in censuses)):
        shared = imports_of(found[f"rewrap.{module}"], set(found))
        assert not [name for name in shared if name.startswith("rewrap.engine")]
        for store in ("postgres", "cosmos"):
            for name in ("store", "reader", "writer", "queries"):
                assert f"rewrap.stores.{store}.{name}" not in shared


def test_pure_modules_import_no_adapter() -> None:
    """What decides about values does no I/O: it imports neither stores nor ledgers nor a driver."""
    for name in ("reseal", "envelope", "dekring", "probe", "health", "accounting"):
        text = (ROOT / "engine" / f"{name}.py").read_text()
        drivers = ("asyncpg", "sqlalchemy", "anyio", "rewrap.stores", "rewrap.ledgers")
        assert not [word for word in drivers if word in text]


def test_no_file_is_two_ideas() -> None:
    """A source file past about 400 lines is split."""
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > 480} == {}
