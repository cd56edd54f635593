"""What a reader, a code host and Colab need of the saved notebooks; that their code runs is nbmake's part.

And ``notebooks/run_all.py``, on a small project with one small notebook.
"""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from fmnist_utils import ROOT
from fmnist_utils.results import writing

FOLDER = ROOT / "notebooks"
MAIN = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
# Where this machine or somebody's home has its files; only Colab's folder is the same for everybody.
ABSOLUTE_PATH = re.compile(r"(?<![\w.~:/])/(?:home|root|tmp|work|Users|content(?!/course\b))\b|\b[A-Za-z]:\\")


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


every_notebook = pytest.mark.parametrize("path", MAIN + SOLUTIONS, ids=name_of)
main_notebooks = pytest.mark.parametrize("path", MAIN, ids=name_of)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def links(path: Path) -> list[str]:
    """Targets of Markdown links (and pictures) that lead to files, without the part behind #."""
    targets = re.findall(r"\]\(\s*([^)\s#]+)[^)]*\)", prose(path))
    return [target for target in targets if not re.match(r"(https?|mailto|attachment|data):", target)]


def texts_in(output: nbformat.NotebookNode) -> list[str]:
    if output.output_type == "stream":
        return [output.text]
    return [content for kind, content in output.get("data", {}).items() if kind.startswith("text/")]


# ----------------------------------------------------------------------------------------------------- the course


def test_notebooks_are_numbered_from_01_without_gaps():
    assert [path.name[:3] for path in MAIN] == [f"{number:02}_" for number in range(1, len(MAIN) + 1)]
    assert len(MAIN) >= 3


@main_notebooks
def test_each_notebook_has_its_solutions_and_leads_to_them(path):
    solutions = FOLDER / "solutions" / f"{path.stem}_solutions.ipynb"
    assert solutions.is_file()
    assert f"solutions/{solutions.name}" in links(path)
    assert f"../{path.name}" in links(solutions)


def test_each_solutions_notebook_has_its_notebook():
    assert {path.name for path in SOLUTIONS} == {f"{path.stem}_solutions.ipynb" for path in MAIN}


@main_notebooks
def test_notebooks_lead_to_the_one_before_and_the_one_behind(path):
    position = MAIN.index(path)
    neighbours = MAIN[max(position - 1, 0) : position] + MAIN[position + 1 : position + 2]
    assert {neighbour.name for neighbour in neighbours} <= set(links(path))


@every_notebook
def test_every_linked_file_exists(path):
    assert [target for target in links(path) if not (path.parent / target).exists()] == []


@main_notebooks
def test_notebooks_have_25_to_45_cells(path):
    assert 25 <= len(read(path).cells) <= 45


@main_notebooks
def test_parameters_are_in_a_tagged_cell(path):
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    assert re.search(r"^\w+ *=", tagged[0].source, re.MULTILINE)


@every_notebook
def test_first_code_cell_prepares_colab_in_the_same_way_everywhere(path):
    first = code_cells(path)[0].source
    assert "google.colab" in first and "/content/course" in first
    # What runs in Colab only must not have been commented out.
    assert re.search(r"^\s*[!%]pip install", first, re.MULTILINE) or "pip" in re.sub("#.*", "", first)
    assert first == code_cells(MAIN[0])[0].source


@every_notebook
def test_no_code_cell_is_longer_than_20_lines(path):
    long = [c.source for c in code_cells(path) if len([line for line in c.source.splitlines() if line.strip()]) > 20]
    assert long == []


# -------------------------------------------------------------------------------------------------------- the files


@every_notebook
def test_files_are_valid_in_notebook_format_4_5_and_below_1_mb(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    assert path.stat().st_size < 1_000_000


@every_notebook
def test_no_widget_state_is_saved(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code_cells(path) for output in cell.outputs for kind in output.get("data", {})}
    assert [kind for kind in kinds if "widget" in kind] == []


@every_notebook
def test_saved_outputs_come_from_one_run_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_no_error_or_warning_is_saved(path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    written = [output.text for output in outputs if output.get("name") == "stderr"]
    assert [text for text in written if "Warning" in text or "Error" in text] == []


@main_notebooks
def test_figures_are_saved(path):
    kinds = {kind for cell in code_cells(path) for output in cell.outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}


@every_notebook
def test_no_absolute_path_of_some_machine_is_saved(path):
    texts = [cell.source for cell in read(path).cells]
    texts += [text for cell in code_cells(path) for output in cell.outputs for text in texts_in(output)]
    assert [match[0] for text in texts for match in ABSOLUTE_PATH.finditer(text)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("open('/home/ada/x.csv')", True),
        ("read /tmp/x and write", True),
        ("/content/drive/x", True),
        (r"C:\Users\ada", True),
        ("git clone X /content/course", False),
        ("pip install -e /content/course", False),
        ("https://example.org/home/page", False),
        ("~/tmp/x, ../home/x, data/home/x, images/s", False),
    ],
)
def test_absolute_paths_would_be_noticed(text, found):
    assert bool(ABSOLUTE_PATH.search(text)) is found


# ------------------------------------------------------------------------------------------------------ run_all.py


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """Runs it in a project with notebooks 01 and 02 (and a solution) that say where their runs go."""
    spec = importlib.util.spec_from_file_location("run_all", FOLDER / "run_all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(writing, "ROOT", tmp_path)
    monkeypatch.setenv("FMNIST_RECORD", "0")  # so that it is put back after --record
    text = "[next](02_b.ipynb) [answers](solutions/01_a_solutions.ipynb#1) ![plot](../results/a.png) [x](https://x.org)"
    cells = [nbformat.v4.new_markdown_cell(text)]
    cells += [nbformat.v4.new_code_cell("import os\nprint(os.environ['FMNIST_RECORD'], os.path.basename(os.getcwd()))")]
    for name in ("01_a.ipynb", "02_b.ipynb", "solutions/01_a_solutions.ipynb"):
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        path = tmp_path / "notebooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.png").touch()

    def start(*arguments: str) -> dict[str, bytes]:
        monkeypatch.setattr(sys, "argv", ["run_all.py", *arguments])
        before = contents()
        module.main()
        return {name: content for name, content in contents().items() if before.get(name) != content}

    def contents() -> dict[str, bytes]:
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files}

    return start


def test_run_all_writes_below_runs_alone(run_all, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp437")  # of Windows; it knows no ellipsis, for one
    monkeypatch.setattr(sys, "stdout", console)
    changed = run_all()
    assert set(changed) == {f"runs/{n}" for n in ("notebooks/01_a.ipynb", "notebooks/02_b.ipynb",
                                                  "benchmarks/notebook_times-smoke.json")}  # fmt: skip
    prose, code = nbformat.reads(changed["runs/notebooks/01_a.ipynb"].decode(), as_version=4).cells
    assert code.outputs[0].text == "0 notebooks\n" and code.execution_count == 1
    # From runs/notebooks the same files; the notebook beside it is the one that was run, too.
    assert prose.source == (
        "[next](02_b.ipynb) [answers](../../notebooks/solutions/01_a_solutions.ipynb#1) ![plot](../../results/a.png) "
        "[x](https://x.org)"
    )
    times = json.loads(changed["runs/benchmarks/notebook_times-smoke.json"])
    assert set(times) == {"name", "profile", "notebooks", "hardware", "versions", "date"}
    assert set(times["notebooks"]) == {"01_a", "02_b"} and times["notebooks"]["01_a"]["seconds"] > 0
    console.seek(0)
    said = console.read()
    assert "01_a: " in said and said.isascii()


def test_run_all_saves_in_place_and_records_on_request(run_all):
    changed = run_all("02", "--in-place", "--record")
    assert set(changed) == {"notebooks/02_b.ipynb", "results/benchmarks/notebook_times-smoke.json"}
    prose, code = nbformat.reads(changed["notebooks/02_b.ipynb"].decode(), as_version=4).cells
    assert code.outputs[0].text == "1 notebooks\n" and "(../results/a.png)" in prose.source


def test_run_all_keeps_solutions_apart(run_all):
    assert set(run_all("solutions")) == {
        "runs/notebooks/solutions/01_a_solutions.ipynb",
        "runs/benchmarks/solution_times-smoke.json",
    }
    with pytest.raises(SystemExit, match="No notebook's name begins with '08'"):
        run_all("08")
