"""The files in examples/ that run elsewhere: what can be tried here."""

import ast
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT
from nbclient import NotebookClient
from test_docs import require_understood

NOTEBOOK = ROOT / "examples" / "colab.ipynb"
SKYPILOT = ROOT / "examples" / "skypilot.yaml"
HF_JOBS = ROOT / "examples" / "hf_jobs.sh"


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def notebook_commands() -> list[str]:
    """What the cells of the notebook give to `run`, with the values that they assign."""
    commands, values = [], {}
    for cell in notebook().cells:
        if cell.cell_type != "code" or cell.source.startswith("%%"):
            continue
        source = re.sub(r"^( *)[!%].*", r"\1pass", cell.source, flags=re.MULTILINE)
        for node in ast.parse(source).body:
            text = ast.unparse(node)
            if re.match(r"[A-Z]+ = f?['\"]|[A-Z]+ = \d", text):
                exec(text, values)
            if text.startswith("run("):
                commands.append(eval(text.removeprefix("run"), values))
    return [command for command in commands if not command.startswith("-c")]


def script_commands(script: str, **values: str) -> list[str]:
    """The lines of a script that start one of the project's commands. The script must be bash."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = [line.strip() for line in script.splitlines()]
    lines = [string.Template(line).safe_substitute(values) for line in lines]
    return [line for line in lines if re.match(r"(python|torchrun) .*\w\.py", line)]


def test_every_command_of_the_notebook_is_understood() -> None:
    commands = notebook_commands()
    assert len(commands) == 5
    for command in commands:
        require_understood(f"python {command}")


def test_the_notebook_is_short_and_has_no_outputs() -> None:
    cells = notebook().cells
    nbformat.validate(notebook())
    assert len(cells) <= 12
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_notebook_shows_a_picture_and_the_surprisals_of_the_users_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    project = shutil.copytree(ROOT / "impossible", tmp_path / "code" / "impossible").parent
    shutil.copytree(ROOT / "config", project / "config")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, project)
    shown = notebook()
    shown.cells[1].source = re.sub("STEPS = [0-9]+", "STEPS = 8", shown.cells[1].source)
    resources = {"metadata": {"path": str(project)}}
    NotebookClient(shown, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in shown.cells for output in cell.get("outputs", [])]
    results = [output.data for output in outputs if output.output_type == "execute_result"]
    assert len([data for data in results if "image/png" in data]) == 1
    differences, sentences = [data["text/html"] for data in results if "text/html" in data]
    assert differences.count("PartialReverse - NoReverse") == 4  # a row for each checkpoint
    assert "singular" in sentences and "PartialReverse" in sentences


def test_skypilots_file_is_valid_and_its_commands_are_understood() -> None:
    text = SKYPILOT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    task = yaml.safe_load(text)
    assert task["resources"]["use_spot"]
    assert [mount["mode"] for mount in task["file_mounts"].values()] == ["MOUNT_CACHED"]
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    values = task["envs"] | {"REPO": "USER/NAME", "out": "out", "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
    commands = script_commands(task["run"], **values)
    assert [re.search(r"\w+\.py", line)[0] for line in commands] == [
        "prepare.py",
        "train.py",
        "convert_to_hf.py",
    ]
    for command in commands:
        require_understood(command)


def test_hf_understands_the_options_of_a_job_and_we_understand_its_commands() -> None:
    config = "config/partial_reverse.py"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [HF_JOBS, "https://127.0.0.1/code.git", "USER/NAME", config, "--dry-run"],
        env=os.environ | {"PATH": path, "HF_TOKEN": "hf_secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Job not submitted" in done.stdout and "hf_secret" not in done.stdout
    (script,) = re.findall(r"bash -euc '\n(.*?)'", HF_JOBS.read_text(), flags=re.DOTALL)
    commands = script_commands(script, CONFIG=config, NAME="USER/NAME")
    assert len(commands) == 3
    for command in commands:
        require_understood(command)
