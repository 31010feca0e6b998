"""What a newcomer types: each command of the README and of the pages, as written, in a fresh clone."""
import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from conftest import clean_env


# kernels --------------------------------------------------------------------------------------------------------

def test_pages_that_start_together(tmp_path):
    "Kernels talk over files, not over network ports that two of them might grab; and the first line one reads is no warning."
    if sys.platform == "win32":
        pytest.skip("no sockets with names")
    assert [e for e in entry_points(group="papermill.engine") if e.value == "skeletal_fm.kernels:Engine"], "this environment is older than setup.py: install the package again"
    cell = dict(cell_type="code", id="a", metadata={}, source=["from ipykernel.kernelapp import IPKernelApp as app; print(app.instance().transport)"], outputs=[], execution_count=None)
    page = dict(cells=[cell], metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3")), nbformat=4, nbformat_minor=5)
    (tmp_path / "page.ipynb").write_text(json.dumps(page), encoding="utf-8")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-output", tmp_path / "page.ipynb"]
    together = [subprocess.Popen([*map(str, command), str(tmp_path / f"{i}.ipynb")], env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(8)]
    said = [p.communicate(timeout=600)[0] for p in together]
    assert not any(p.returncode for p in together), said
    assert all("ipc" in s and "eavesdropping" not in s and "arning" not in s for s in said), said[0]
