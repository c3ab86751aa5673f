"""Starting up: what a command does not need is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("aiohttp", "azure", "msal", "requests")
"""Packages that only a job with Cosmos DB or Key Vault in it needs: half a second between them."""


def loaded_by(statement: str) -> set[str]:
    """The top-level packages in memory after a statement, in a process of its own."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["rewrap.cli", "rewrap.api", "rewrap.job"])
def test_no_cloud_package_is_imported_at_the_start(module: str) -> None:
    """The command line, the API and a job file come without the packages of Cosmos DB and Key Vault."""
    loaded = loaded_by(f"import {module}")
    assert "rewrap" in loaded
    assert sorted(loaded.intersection(HEAVY)) == []


def test_what_is_looked_for_is_installed() -> None:
    """The packages have these names: imported, they are seen."""
    loaded = loaded_by("import azure.cosmos.aio, azure.identity.aio, azure.keyvault.keys.crypto.aio, aiohttp")
    assert loaded.issuperset(HEAVY)
