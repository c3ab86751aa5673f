"""What the cases need of pytest."""

from __future__ import annotations

import pytest

# its assertions say what was compared, as those of test files do
pytest.register_assert_rewrite("tests.cases.trial")
