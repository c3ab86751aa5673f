"""One process that starts the command line, for all cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cases.starter import Starter

# its assertions say what was compared, as those of test files do
pytest.register_assert_rewrite("tests.cases.trial")


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """What starts the command line."""
    with Starter() as found:
        yield found
