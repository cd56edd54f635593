"""The package as a whole: what is installed, and who may import whom."""

import ast
import shutil
import subprocess
import sys
import zipfile

import pytest

from fmnist_utils import ROOT

PACKAGE = ROOT / "fmnist_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path) -> set[str]:
    """Full names of the package's own modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "fmnist_utils"}


def test_sources_know_nothing_of_what_is_built_on_them():
    files = sorted((PACKAGE / "sources").glob("*.py"))
    assert len(files) >= 3
    for path in files:
        others = {n for n in imported(path) if not n.startswith("fmnist_utils.sources")}
        assert others <= {"fmnist_utils", "fmnist_utils.ROOT"}, path.name


def test_nothing_imports_the_app():
    page = {"app.py", "app_pages.py"}
    for path in MODULES:
        names = imported(path)
        assert path.name in page or not names & {"fmnist_utils.app", "fmnist_utils.app_pages"}, path.name


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
    expected |= {f"fmnist_utils/{name}" for name in ("assets/app.css", "assets/app.js", "py.typed")}
    assert expected <= inside
