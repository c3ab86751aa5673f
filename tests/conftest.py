"""Fixtures: one real Postgres for all tests, a fresh database and folder for each."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest

from rewrap.demo.postgres import EmbeddedPostgres
from tests.support.cosmos import CosmosDatabase, CosmosEmulator, CosmosServer, missing_emulator
from tests.support.workbench import Workbench

if TYPE_CHECKING:
    # imported where they are used: half a second for Microsoft's packages, which few tests need
    from tests.support.aws import AwsServer
    from tests.support.proxy import FaultProxy
    from tests.support.token import SoftToken
    from tests.support.transit import TransitEngine
    from tests.support.vault import VaultEmulator, VaultServer

_NUMBERS = itertools.count(1)

# a shell starts what runs in the background with SIGINT ignored, and every command would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

SETTINGS = {
    "max_prepared_transactions": "10",
    "wal_level": "logical",
    "max_connections": "120",
    "autovacuum_naptime": "5s",
}


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server of the tests' own, with prepared transactions allowed."""
    with EmbeddedPostgres(SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> str:
    """A superuser's URL: of the server in REWRAP_TEST_DSN, or else of one started for the tests."""
    given = os.environ.get("REWRAP_TEST_DSN")
    if given:
        return given
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    return server.dsn()


@pytest.fixture
def bench(server_dsn: str, tmp_path: Path) -> Iterator[Workbench]:
    """A fresh database, a folder, and a job over table notes."""
    name = f"t{os.getpid()}_{next(_NUMBERS)}"
    admin = Workbench(server_dsn, tmp_path)
    admin.sql(f"CREATE DATABASE {name}")
    parts = urlsplit(server_dsn)
    try:
        yield Workbench(urlunsplit(parts._replace(path=f"/{name}")), tmp_path)
    finally:
        admin.sql(f"DROP DATABASE {name} WITH (FORCE)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts last what needs the server that may still be being built."""
    items.sort(key=lambda item: "transit" in item.nodeid)


def lacking(message: str) -> None:
    """Skips, loudly, where a component is missing; fails where CI should have it."""
    if os.environ.get("REWRAP_REQUIRE_COMPONENTS"):
        pytest.fail(message)
    pytest.skip(message)


def require(component: str, *programs: str) -> None:
    """Skips or fails where a component's programs are not on the PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        lacking(f"{component} is missing: no {', '.join(missing)} on the PATH")


def started_cosmos() -> CosmosEmulator:
    """An emulator to enter; skips or fails where there is none."""
    if missing := missing_emulator():
        lacking(f"the Cosmos DB emulator is missing: {missing}")
    return CosmosEmulator()


@pytest.fixture(scope="session")
def cosmos_emulator() -> Iterator[CosmosServer]:
    """The account in COSMOS_TEST_ENDPOINT and COSMOS_TEST_KEY, or else an emulator for all tests."""
    if given := CosmosServer.of_environment():
        yield given
        return
    with started_cosmos() as emulator:
        yield emulator


@pytest.fixture
def own_cosmos_emulator() -> Iterator[CosmosEmulator]:
    """An emulator of the test's own, to stop and to restart."""
    with started_cosmos() as emulator:
        yield emulator


@pytest.fixture
def cosmos(cosmos_emulator: CosmosServer) -> Iterator[CosmosDatabase]:
    """A fresh database."""
    name = f"rewrap-test-{os.getpid()}-{next(_NUMBERS)}"
    with CosmosDatabase(cosmos_emulator.endpoint, cosmos_emulator.key, name) as database:
        yield database


@pytest.fixture
def cosmos_proxy(cosmos_emulator: CosmosServer) -> Iterator[FaultProxy]:
    """A proxy in front of it, without a rule."""
    from tests.support.proxy import FaultProxy

    with FaultProxy(cosmos_emulator.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def aws_server() -> Iterator[AwsServer]:
    """AWS's services, as moto has them, for all tests."""
    from tests.support.aws import AwsServer

    with AwsServer() as server:
        yield server


@pytest.fixture
def aws(aws_server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """That server without a rule, and an identity in the environment."""
    aws_server.proxy.clear()
    aws_server.proxy.seen.clear()
    for name, value in aws_server.environ.items():
        monkeypatch.setenv(name, value)
    return aws_server


@pytest.fixture(scope="session")
def transit_engine() -> Iterator[TransitEngine]:
    """A Vault server with its transit engine, for all tests."""
    from tests.support.transit import TransitEngine, missing_server

    if missing := missing_server():
        lacking(f"the Vault server is missing: {missing}")
    with TransitEngine() as engine:
        yield engine


@pytest.fixture
def transit(transit_engine: TransitEngine) -> TransitEngine:
    """That server without a rule."""
    transit_engine.proxy.reset()
    return transit_engine


@pytest.fixture(scope="session")
def vault_server() -> Iterator[VaultServer]:
    """The vault in AZURE_KEYVAULT_TEST_URL, or else the tests' own."""
    from tests.support.vault import VaultEmulator, VaultServer

    if given := VaultServer.of_environment():
        yield given
        return
    with VaultEmulator() as emulator:
        yield emulator


@pytest.fixture
def vault(vault_server: VaultServer) -> VaultServer:
    """That vault, as at the start but for its keys."""
    from tests.support.vault import VaultEmulator

    if isinstance(vault_server, VaultEmulator):
        vault_server.reset()
    return vault_server


@pytest.fixture
def vault_emulator(vault: VaultServer) -> VaultEmulator:
    """The tests' own, to make faults with; these tests are skipped with a vault in the environment."""
    from tests.support.vault import VaultEmulator

    if not isinstance(vault, VaultEmulator):
        pytest.skip("a vault of the environment makes no faults")
    return vault


@pytest.fixture(scope="session")
def php() -> str:
    """PHP with its sodium and pgsql extensions."""
    require("PHP", "php")
    found = subprocess.run(
        ["php", "-r", 'exit(extension_loaded("pgsql") && extension_loaded("sodium") ? 0 : 1);'],
        check=False,
    )
    if found.returncode:
        require("PHP's pgsql or sodium extension", "php-with-pgsql-and-sodium")
    return "php"


@pytest.fixture(scope="session")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    """A PKCS#11 token for all tests of this process: its library is initialised once."""
    from tests.support.token import SoftToken, library

    require("SoftHSM", "softhsm2-util")
    if library() is None:
        lacking("SoftHSM is missing: its library is in none of the usual places")
    with pytest.MonkeyPatch.context() as patch:
        token = SoftToken(tmp_path_factory.mktemp("softhsm"))
        for label in ("twin", "twin"):
            token.initialise(label)
        for name, value in token.environ.items():
            patch.setenv(name, value)
        yield token
        token.close()
