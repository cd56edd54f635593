"""The package as a whole: what is installed, and who may import whom."""

import ast
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
BELOW = {"results", "scale", "sources"}
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
    assert BELOW | {"app", "course", "explain", "export", "plots", "tune"} == ROOMS


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_the_core_imports_no_room_above_it_and_core_dependencies_only(path):
    assert rooms(path) <= CORE | BELOW, "the core must not need what is built on it"
    core = {re.match(r"[\w-]+", line)[0] for line in requires("fmnist-utils") if "extra ==" not in line}
    assert {"torch", "scikit-learn"} <= core and "optuna" not in core
    allowed = core | {"PIL", "sklearn", "fmnist_utils"} | sys.stdlib_module_names
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def test_sources_and_scale_know_nothing_of_what_is_built_on_them():
    for room in ("sources", "scale"):
        files = sorted((PACKAGE / room).glob("*.py"))
        assert len(files) >= 2
        for path in files:
            assert rooms(path) <= {room}, path.name


def test_nothing_imports_the_app():
    for path in MODULES:
        assert "app" not in rooms(path) or path.parent.name == "app", path.name


def test_a_wheel_holds_every_module_and_the_pages_files(tmp_path):
    pytest.importorskip("setuptools", reason="building a wheel without a network needs setuptools in this environment")
    project = tmp_path / "project"
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(PACKAGE, project / "fmnist_utils", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (project / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in MODULES}
    expected |= {f"fmnist_utils/{name}" for name in ("app/assets/app.css", "app/assets/app.js", "py.typed")}
    assert expected <= inside
