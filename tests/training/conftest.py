"""Every training of a process starts as the first one would."""

import pytest

from tests import helpers


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    helpers.fresh_accelerate()
