"""``notebooks/colab.py`` and the notebooks' first cell, in a made-up Colab: nothing is installed."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fmnist_utils import ROOT

pytest.importorskip("tomllib", reason="Colab has Python 3.11 or newer, and so must this test")
ADDRESS = "https://github.com/you/course"
#: What Colab has, as far as the course asks for it.
COLAB = {
    **dict.fromkeys(("accelerate", "matplotlib", "numpy", "pandas", "pillow", "psutil", "safetensors"), "99.0"),
    **dict.fromkeys(("scikit-learn", "scipy", "seaborn", "tqdm", "filelock", "plotly"), "99.0"),
    **{"torch": "2.9.0+cu126", "torchvision": "0.24.0+cu126", "numpy": "2.0.2"},
}


@pytest.fixture
def colab():
    spec = importlib.util.spec_from_file_location("colab_under_test", ROOT / "notebooks" / "colab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A fresh Colab: its packages, no course yet; lists the commands that were run, and the pins that pip was given."""
    packages, commands, pins = dict(COLAB), [], []
    course = tmp_path / "course"

    def version(name: str) -> str:
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    def run(command: list[str], check: bool) -> None:
        assert check, "a command that fails must not be passed over"
        commands.append(command)
        if command[0] == "git":
            (course / "notebooks").mkdir(parents=True)
            shutil.copy(ROOT / "pyproject.toml", course)
            shutil.copy(ROOT / "notebooks" / "colab.py", course / "notebooks")
        else:
            pins.extend(Path(command[command.index("--constraint") + 1]).read_text().split())

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.delitem(sys.modules, "colab", raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    yield types.SimpleNamespace(packages=packages, commands=commands, pins=pins, course=course)
    sys.modules.pop("colab", None)


def first_cell(colab, course: Path, address: str = ADDRESS, extras: str = '"explain", "tune"') -> str:
    return colab.FIRST_CELL.format(address=address, extras=extras).replace("/content/course", course.as_posix())


def test_outside_colab_the_first_cell_does_nothing(colab, machine, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab")
    before = list(sys.path)
    exec(first_cell(colab, machine.course, address=""), {})
    assert machine.commands == [] and sys.path == before and not machine.course.exists()


def test_without_an_address_it_says_what_to_do(colab, machine):
    with pytest.raises(AssertionError, match="Set REPO above to the repository's address"):
        exec(first_cell(colab, machine.course, address=""), {})
    assert machine.commands == []


def test_it_fetches_the_course_installs_what_is_missing_and_says_so(colab, machine, capsys):
    exec(first_cell(colab, machine.course), {})
    clone, install = machine.commands
    assert clone == ["git", "clone", "--depth=1", ADDRESS, machine.course.as_posix()]
    assert install[1:5] == ["-m", "pip", "install", "--quiet"] and install[0] == sys.executable
    assert install[install.index("--constraint") + 2 :] == ["captum>=0.7", "cleanlab>=2.6", "optuna>=4"]
    assert machine.pins == ["torch==2.9.0+cu126", "torchvision==0.24.0+cu126", "numpy==2.0.2"]
    said = capsys.readouterr().out
    assert "installed: captum>=0.7, cleanlab>=2.6, optuna>=4" in said
    assert "left as they are: torch 2.9.0+cu126, torchvision 0.24.0+cu126, numpy 2.0.2" in said
    assert Path.cwd() == machine.course / "notebooks"
    assert sys.path[0] == machine.course.as_posix() and Path(os.environ["PYTHONPATH"]) == machine.course


def test_a_second_run_fetches_and_installs_nothing(colab, machine, capsys):
    exec(first_cell(colab, machine.course), {})
    machine.packages |= {"captum": "0.9.0", "cleanlab": "2.9.0", "optuna": "5.0"}
    machine.commands.clear()
    exec(first_cell(colab, machine.course), {})
    assert machine.commands == [] and "installed: nothing" in capsys.readouterr().out


def test_an_older_torch_is_kept_and_named(colab, machine, capsys):
    machine.packages |= {"torch": "2.5.1+cu121", "matplotlib": "3.7.1"}
    exec(first_cell(colab, machine.course, extras='"export"'), {})
    wanted = machine.commands[1][machine.commands[1].index("--constraint") + 2 :]
    assert wanted == ["matplotlib>=3.8", "onnx", "onnxscript", "onnxruntime"]
    assert "torch==2.5.1+cu121" in machine.pins
    said = capsys.readouterr().out
    assert "asks for torch>=2.6, and Colab has an older one" in said and "Restart session" in said


def test_where_torch_is_missing_it_is_installed(colab, machine):
    del machine.packages["torch"], machine.packages["torchvision"]
    exec(first_cell(colab, machine.course, extras=""), {})
    assert machine.commands[1][-2:] == ["torch>=2.4", "torchvision>=0.19"] and machine.pins == ["numpy==2.0.2"]


@pytest.mark.parametrize("have", ["2.4", "2.4.0+cpu", "2.10.1", "3", "2.3.9", "1.99", "2.04.1"])
@pytest.mark.parametrize("line", ["x>=2.4", "x>=2.4.1", "x>=2", "x"])
def test_versions_compare_as_pip_compares_them(colab, machine, monkeypatch, have, line):
    monkeypatch.setattr(colab, "installed", lambda name: have)
    assert (colab.unmet([line]) == []) == Requirement(line).specifier.contains(have)


def test_extras_mean_what_pip_understands_by_them(colab):
    lines = colab.requirements(("notebooks",))
    names = {Requirement(line).name for line in lines}
    assert {"torch", "jupyterlab", "captum", "optuna", "onnxruntime", "dash", "waitress"} <= names
    assert "fmnist-utils" not in names and len(lines) == len(set(lines))


@pytest.fixture
def notebooks(colab, tmp_path, monkeypatch):
    """A project with notebook 01 and its solutions; a function that runs the program and reads the two."""
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    names = ("01_exploration.ipynb", "solutions/01_exploration_solutions.ipynb")
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    for name in names:
        shutil.copy(ROOT / "notebooks" / name, tmp_path / "notebooks" / name)

    def run(*arguments: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["colab.py", *arguments])
        colab.main()
        return [json.loads((tmp_path / "notebooks" / name).read_text(encoding="utf-8")) for name in names]

    return run


def test_the_address_is_written_into_every_notebook_at_once(notebooks, capsys):
    before = notebooks()
    main, solutions = notebooks(ADDRESS + ".git")
    changed = ["notebooks/01_exploration.ipynb", "notebooks/solutions/01_exploration_solutions.ipynb"]
    assert capsys.readouterr().out.split() == changed
    badge = "https://colab.research.google.com/github/you/course/blob/main/notebooks/01_exploration.ipynb)"
    assert badge in "".join(main["cells"][0]["source"])
    for notebook in (main, solutions):
        code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        assert f'REPO = "{ADDRESS}.git"' in "".join(code["source"])
    assert notebooks() == [main, solutions], "without an address, the one that is there stays"
    assert "/course/blob/dev/" in "".join(notebooks(ADDRESS, "--branch", "dev")[0]["cells"][0]["source"])
    assert notebooks("") == before


def test_a_first_cell_asks_for_what_the_others_import(colab):
    def asks(code: str) -> str:
        cells = [{"cell_type": "code", "source": ["REPO = ''"]}, {"cell_type": "code", "source": [code]}]
        return "".join(colab.with_address({"cells": cells}, "x.ipynb", "")["cells"][0]["source"])

    assert "prepare()" in asks("import torch")
    assert 'prepare("tune")' in asks("from fmnist_utils.tune import search")
    assert 'prepare("explain", "export", "app")' in asks("import onnx\nfrom fmnist_utils.app import photos")
