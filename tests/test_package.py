"""The package as a whole: what is installed, and who may import whom."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires

import pytest

from fmnist_utils import ROOT

PACKAGE = ROOT / "fmnist_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))


#: Rooms that the core calls, and which know nothing of it but the project's folder, profile and (results) its models.
BELOW = {"networks", "results", "scale", "sources"}
CORE = {path.stem for path in PACKAGE.glob("*.py")}
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imported(path) -> set[str]:
    """Full names of everything that a file imports, wherever in it; relative imports are not used here."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import from the full name, which the tests of the house read."
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path) -> set[str]:
    """The package's rooms and top modules that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("fmnist_utils.")} & (CORE | ROOMS)


def test_the_house_has_these_rooms():
    assert BELOW | {"app", "course", "explain", "export", "plots", "recipes", "tune"} == ROOMS


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_the_core_imports_no_room_above_it_and_core_dependencies_only(path):
    assert rooms(path) <= CORE | BELOW, "the core must not need what is built on it"
    core = {re.match(r"[\w-]+", line)[0] for line in requires("fmnist-utils") if "extra ==" not in line}
    assert {"torch", "scikit-learn"} <= core and "optuna" not in core
    allowed = core | {"PIL", "sklearn", "fmnist_utils"} | sys.stdlib_module_names
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def test_sources_scale_and_networks_know_nothing_of_what_is_built_on_them():
    for room, below in {"sources": set(), "scale": {"sources"}, "networks": {"sources"}}.items():
        files = sorted((PACKAGE / room).glob("*.py"))
        assert len(files) >= 2
        for path in files:
            assert rooms(path) <= {room} | below, path.name


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_of_the_core_can_be_held_in_the_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


def lines_of_code(function: ast.FunctionDef) -> int:
    """Without the docstring."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if text else 0)


def test_functions_are_short():
    long = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and lines_of_code(node) > 60
    ]
    # Layout of one page: one thing after the other, which no reader has to hold in mind.
    assert set(long) <= {"app/pages.py: _try_page"}


def notebook_sources() -> dict[str, str]:
    """Code of every notebook by its path within notebooks/."""
    folder, sources = ROOT / "notebooks", {}
    for path in sorted(folder.rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        lines = (line for text in code for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
        sources[path.relative_to(folder).as_posix()] = "\n".join(lines)
    return sources


def test_every_name_that_a_notebook_imports_is_public():
    hidden = []
    for notebook, code in notebook_sources().items():
        for module, names in re.findall(r"^\s*from (fmnist_utils[\w.]*) import ([\w, ]+)", code, re.MULTILINE):
            public = getattr(importlib.import_module(module), "__all__", None)
            for name in (words.split(" as ")[0].strip() for words in names.split(",")):
                is_module = f"{module}.{name}".replace(".", "/")
                is_module = (ROOT / is_module).is_dir() or (ROOT / f"{is_module}.py").is_file()
                if not is_module and name not in (public or ()):
                    hidden.append(f"{notebook}: {module}.{name}")
    assert hidden == []


def test_the_notebook_that_a_docstring_names_exists_and_uses_the_function():
    sources, wrong = notebook_sources(), []
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            for notebook in re.findall(r"notebooks/([\w/]+\.ipynb)", ast.get_docstring(node) or ""):
                if node.name not in sources.get(notebook, ""):
                    wrong.append(f"{path.relative_to(PACKAGE)}: {node.name}, {notebook}")
    assert wrong == [], wrong


def test_nothing_imports_the_app():
    for path in MODULES:
        assert "app" not in rooms(path) or path.parent.name == "app", path.name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the package, built without a network."""
    pytest.importorskip("setuptools", "70.1", reason="building a wheel without a network needs setuptools 70.1")
    project = tmp_path_factory.mktemp("wheel") / "project"
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(PACKAGE, project / "fmnist_utils", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (project / "dist").glob("*.whl")
    return wheel


def test_an_installed_package_works_from_the_projects_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site-packages")
    (tmp_path / "course" / "notebooks").mkdir(parents=True)
    (tmp_path / "course" / "data").symlink_to(ROOT / "data")
    code = """if True:
        import fmnist_utils, sys
        from fmnist_utils.app.server import create_app
        from fmnist_utils.export.__main__ import main
        assert "site-packages" in fmnist_utils.__file__ and fmnist_utils.ROOT.name == "course"
        create_app("small-cnn")
        sys.argv = ["export", "small-cn"]
        main()
    """
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site-packages")}
    folder = tmp_path / "course" / "notebooks"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    # The shipped models are found; exporting one takes seconds, and does the same as in tests/test_export.py.
    assert done.returncode == 2 and "Did you mean 'small-cnn'" in done.stderr, done.stderr[-2000:]


def test_a_wheel_holds_every_module_and_the_pages_files(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in MODULES}
    expected |= {f"fmnist_utils/{name}" for name in ("app/assets/app.css", "app/assets/app.js", "py.typed")}
    assert expected <= inside
