"""The notebooks are kept as they ran: whole, in order, small, and with nothing of the machine. CI runs them again."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w./])/(?:tmp|home|root|Users|work|var|opt|usr)/|[A-Z]:\\\\|site-packages")


def problems(text):
    """What is wrong with a notebook, in words."""
    found = []
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not run from top to bottom")
    outputs = [output for cell in cells for output in cell["outputs"]]
    if any(output["output_type"] == "error" for output in outputs):
        found.append("an error")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("a warning")
    if not any("image/png" in output.get("data", {}) for output in outputs):
        found.append("no picture")
    if not cells or 'find_spec("fedjax_sim") is None' not in "".join(cells[0]["source"]):
        found.append("no first cell that installs the package where it is missing")
    for output in outputs:
        if "image/png" in output.get("data", {}) and not output.get("metadata", {}).get("image/png", {}).get("alt"):
            found.append("a picture without alternative text")
    pictureless = [{**o, "data": {k: v for k, v in o.get("data", {}).items() if k != "image/png"}} for o in outputs]
    sources = [cell["source"] for cell in notebook["cells"]]
    if match := MACHINE.search(json.dumps([pictureless, sources])):
        found.append(f"a path of a machine: {match[0]}")
    if len(text) > 1_000_000:
        found.append(f"{len(text)} bytes, over a million")
    if set(notebook["metadata"]) - {"kernelspec", "language_info"} or any(cell["metadata"] for cell in cells):
        found.append("metadata that nobody needs")
    if notebook["metadata"]["kernelspec"]["name"] != "python3":
        found.append("a kernel that others lack")
    return found


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_first_run",
        "02_server_optimizers",
        "03_partitions",
        "04_private_and_compressed",
        "05_own_algorithm",
        "06_secure_round",
        "07_attack_and_defend",
        "08_slow_devices",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_as_they_ran(path):
    assert problems(path.read_text()) == []


ALT = {"image/png": {"alt": "a picture"}}
INSTALL = 'if importlib.util.find_spec("fedjax_sim") is None:\n    %pip install -q fedjax-sim'


def made(**changes):
    output = {"output_type": "display_data", "data": {"image/png": "abc", "text/plain": "<Figure>"}, "metadata": ALT}
    cell = {"cell_type": "code", "source": INSTALL, "execution_count": 1, "metadata": {}, "outputs": [output]}
    notebook = {"cells": [{**cell, **changes}], "metadata": {"kernelspec": {"name": "python3"}}}
    return json.dumps(notebook)


def output(kind, **content):
    picture = {"output_type": "display_data", "data": {"image/png": "abc"}, "metadata": ALT}
    return [picture, {"output_type": kind, **content}]


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"execution_count": None}, "not run"),
        ({"execution_count": 2}, "not run"),
        ({"outputs": output("error", ename="ValueError")}, "an error"),
        ({"outputs": output("stream", name="stderr", text="careful")}, "a warning"),
        ({"outputs": []}, "no picture"),
        ({"outputs": output("stream", name="stdout", text="in /tmp/abc")}, "a path of a machine: /tmp/"),
        ({"source": f"{INSTALL}\nopen('/home/me/x')"}, "a path of a machine: /home/"),
        ({"source": INSTALL + "1" * 1_000_000}, "over a million"),
        ({"source": "import fedjax_sim"}, "no first cell that installs"),
        ({"outputs": output("display_data", data={"image/png": "abc"})}, "without alternative text"),
        ({"metadata": {"execution": {}}}, "metadata"),
    ],
)
def test_a_bad_notebook_is_seen(changes, problem):
    assert problems(made()) == []
    found = problems(made(**changes))
    assert len(found) == 1
    assert problem in found[0]
