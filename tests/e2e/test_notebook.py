"""The notebook: it is committed without outputs, and every cell of it runs on a run of the pipeline."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import world
from e2e_runs import Small, twotower
from forked import Forked
from jupyter_client.provisioning import local_provisioner

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook" / "retrieval.ipynb"


class Kernel(Forked):
    """What Jupyter takes for a kernel's `subprocess.Popen`: the imports of the notebook alone take half a minute."""

    # Its process group is that of the tests, and not for Jupyter to signal.
    pid = -1
    stdin = stdout = stderr = None

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.kill()


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs_and_places(notebook: nbformat.NotebookNode):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not [cell for cell in code if cell.outputs or cell.execution_count]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not re.search(r"/(home|root|tmp|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))
    # As in the pages: what is linked exists.
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (NOTEBOOK.parent / target).exists(), target


def test_every_cell_runs(
    small: Small, notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def launch(command: list[str], *, cwd: Any = None, env: Any = None, **_: Any) -> Kernel:
        return Kernel(command, cwd=cwd, env=env)

    monkeypatch.setattr(local_provisioner, "launch_kernel", launch)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("TWOTOWER_CONFIG", small.config_path)
    monkeypatch.setenv("TWOTOWER_MADE_UP", "2000")
    nbclient.NotebookClient(
        notebook, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()

    def shown(source: str) -> str:
        """What the cell with this in its source has put out."""
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source)
        return "".join(output.get("text", "") or "".join(output["data"].values()) for output in cell.outputs)

    assert "ScannIndexBuilder" in shown("for stage in run.stages")
    assert "facets-overview" in shown("tfdv.visualize_statistics")
    assert "scann" in shown("comparison = pd.DataFrame(").lower()
    user = str(world.interactions()[0]["user_id"])
    answer = twotower("recommend", "--config", small.config_path, "--user", user, "--k", "1").answer
    assert answer["items"][0]["title"] in shown("recommender.recommend([request])")
