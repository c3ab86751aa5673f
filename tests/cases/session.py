"""One connection to a case's database, beside those of the commands."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

_OWN_SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",
    "session_replication_role": "origin",
}
"""What a case may have set for its database is for the commands, not for the questions asked here."""


class Session:
    """Runs SQL, all on one connection: a case asks some fifty questions."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._connection = self._runner.run(asyncpg.connect(dsn, server_settings=_OWN_SETTINGS))

    def script(self, statements: str) -> None:
        """Runs several statements as one transaction."""
        self._runner.run(self._connection.execute(statements))

    def sql(self, statement: str, *arguments: Any) -> list[Any]:
        """Runs one statement and returns its rows."""
        return list(self._runner.run(self._connection.fetch(statement, *arguments)))

    def value(self, statement: str, *arguments: Any) -> Any:
        return self.sql(statement, *arguments)[0][0]

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()
