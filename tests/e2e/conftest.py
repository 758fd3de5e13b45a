"""One trained pipeline serves all tests that only look at it, or change a setting of it."""

import pytest
import world
from e2e_runs import Small, twotower


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    world.write_parquet(folder)
    path = world.write_config(folder)
    outcome = twotower("run", "--config", path)
    assert outcome.code == 0, outcome.errors
    return Small(folder, path, outcome)
