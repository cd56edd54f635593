"""What a reader, a code host and Colab need of the saved notebooks; that their code runs is nbmake's part.

And ``notebooks/run_all.py``, on a small project with two small notebooks.
"""

import base64
import copy
import importlib.util
import io
import json
import re
import struct
import sys
from pathlib import Path
from statistics import median

import nbformat
import pytest
from test_weights import SHARED, needs_shared

from fmnist_utils import ROOT
from fmnist_utils.results import writing

FOLDER = ROOT / "notebooks"
MAIN = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
# Where this machine or somebody's home has its files; only Colab's folder is the same for everybody.
ABSOLUTE_PATH = re.compile(r"(?<![\w.~:/])/(?:home|root|tmp|work|Users|content(?!/course\b))\b|\b[A-Za-z]:\\")


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


#: Notebooks made after the present template: those whose exercises have checks.
REBUILT = [path for path in MAIN if (ROOT / "fmnist_utils" / "course" / f"notebook_{path.name[:2]}.py").is_file()]
REBUILT_SOLUTIONS = [FOLDER / "solutions" / f"{path.stem}_solutions.ipynb" for path in REBUILT]


every_notebook = pytest.mark.parametrize("path", MAIN + SOLUTIONS, ids=name_of)
main_notebooks = pytest.mark.parametrize("path", MAIN, ids=name_of)
rebuilt_notebooks = pytest.mark.parametrize("path", REBUILT, ids=name_of)
rebuilt_solutions = pytest.mark.parametrize("path", REBUILT_SOLUTIONS, ids=name_of)
all_rebuilt = pytest.mark.parametrize("path", REBUILT + REBUILT_SOLUTIONS, ids=name_of)


def script(name: str):
    """A module of a program in notebooks/."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


colab = script("colab")


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
def test_notebooks_have_25_cells_or_more(path):
    # As many as the story needs: a rebuilt notebook has more and shorter ones.
    assert 25 <= len(read(path).cells) <= (80 if path in REBUILT else 45)


@main_notebooks
def test_parameters_are_in_a_tagged_cell(path):
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    assert re.search(r"^\w+ *=", tagged[0].source, re.MULTILINE)


@all_rebuilt
def test_first_code_cell_prepares_colab_in_the_same_way_everywhere(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    as_it_should_be = colab.with_address(copy.deepcopy(notebook), path.name, None)
    assert as_it_should_be == notebook, "run python notebooks/colab.py"


@every_notebook
def test_no_code_cell_is_longer_than_20_lines(path):
    long = [c.source for c in code_cells(path) if len([line for line in c.source.splitlines() if line.strip()]) > 20]
    assert long == []


# ------------------------------------------------------------------------------------------------------ the template


def figures(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(path) for output in cell.outputs if "image/png" in output.get("data", {})]


def promise(path: Path) -> str:
    return re.search(r"^\*\*(?!Run time)(.+)\*\*$", read(path).cells[0].source, re.MULTILINE)[1]


def exercises(path: Path) -> dict[str, str]:
    """Number of each exercise: its text up to the hint (notebooks) or as quoted (solutions), in one line."""
    found = {}
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            parts = re.split(r"^#+ (\d\d\.\d) · .+$", cell.source, flags=re.MULTILINE)
            found |= dict(zip(parts[1::2], parts[2::2], strict=True))
    for number, text in found.items():
        quoted = [line.removeprefix(">") for line in text.splitlines() if line.startswith(">")]
        found[number] = " ".join("\n".join(quoted or [text.partition("<details>")[0]]).split())
    return found


@rebuilt_notebooks
def test_it_begins_with_badge_promise_run_time_goals_and_neighbours(path):
    first = read(path).cells[0].source
    assert re.match(rf"# {int(path.name[:2])} · ", first)
    parts = (
        "colab-badge.svg",
        "**Run time:**",
        "**You will learn**",
        "**You need**",
        "Previous:",
        "Next:",
        "## Set-up",
    )
    places = [first.find(part) for part in parts]
    assert min(places) > 0 and places == sorted(places)
    assert re.search(r"\d", promise(path)), "the promise names the number to be found"


@rebuilt_notebooks
def test_sections_are_numbered_and_the_end_is_the_same_everywhere(path):
    headings = re.findall(r"^## (.+)", prose(path), re.MULTILINE)
    numbers = [int(heading.split(" · ")[0]) for heading in headings if " · " in heading]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 5
    assert headings[-3:] == ["Key takeaways", "One common mistake", "Exercises"]


@all_rebuilt
def test_code_is_short_and_nothing_is_cut_off_on_the_right(path):
    cells = [cell.source for cell in code_cells(path)]
    long = [line for cell in cells[1:] for line in cell.splitlines() if len(line) > 88]
    assert long == []
    assert median(len(cell.splitlines()) for cell in cells) <= 10
    assert not [cell for cell in cells if "fmt: skip" in cell]


@all_rebuilt
def test_each_figure_has_a_text_and_is_sharp(path):
    for output in figures(path):
        about = output.metadata.get("image/png", {})
        assert len(about.get("alt", "")) >= 20, "use plots.show(figure, text)"
        (pixels,) = struct.unpack(">I", base64.b64decode(output.data["image/png"])[16:20])
        assert pixels / about["width"] >= 130 / 90


@rebuilt_notebooks
def test_each_prediction_is_answered_before_the_next_with_a_number(path):
    marks = re.findall(r"^\*\*(Predict|Answer)\.\*\*(.*)", prose(path), re.MULTILINE)
    assert [kind for kind, _ in marks] == ["Predict", "Answer"] * (len(marks) // 2)
    assert len(marks) >= 10
    assert [text for kind, text in marks if kind == "Answer" and not re.search(r"\d", text)] == []


@rebuilt_notebooks
def test_measured_numbers_in_promise_and_answers_are_in_the_outputs(path):
    outputs = " ".join(text for cell in code_cells(path) for output in cell.outputs for text in texts_in(output))
    answers = re.findall(r"^\*\*(?:Answer)\.\*\*(.*)", prose(path), re.MULTILINE)
    answers.append(promise(path))
    numbers = {number for answer in answers for number in re.findall(r"\d+\.\d+|\d+(?=%)", answer)}
    assert len(numbers) >= 8
    assert sorted(number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", outputs)) == []


@rebuilt_notebooks
def test_exercises_are_headings_each_with_a_cell_and_a_check(path):
    number = path.name[:2]
    assert list(exercises(path)) == [f"{number}.{i}" for i in (1, 2, 3)]
    checks = re.findall(
        r'^check\("([\d.]+)", \w+\)$', "\n".join(cell.source for cell in code_cells(path)), re.MULTILINE
    )
    assert checks == list(exercises(path))


@rebuilt_solutions
def test_solutions_quote_the_exercises_and_pass_their_checks(path):
    asked = exercises(FOLDER / path.name.replace("_solutions", ""))
    assert exercises(path) == asked
    passed = {}
    for cell in code_cells(path):
        if match := re.search(r'^check\("([\d.]+)"', cell.source, re.MULTILINE):
            passed[match[1]] = [output.data["text/plain"] for output in cell.outputs if "data" in output]
    assert list(passed) == list(asked)
    assert all(text[-1].startswith("Right: ") for text in passed.values())


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


@pytest.mark.parametrize(
    "weights", [pytest.param(SHARED, id="with", marks=needs_shared), pytest.param("", id="without")]
)
def test_notebook_04_runs_with_resnet50s_weights_and_without(weights, tmp_path, monkeypatch):
    """nbmake would run it only as the caller's FMNIST_WEIGHTS says; conftest.py tells it not to."""
    monkeypatch.setenv("FMNIST_WEIGHTS", str(weights))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    script("run_all").execute(FOLDER / "04_resnet50_fine_tuning.ipynb", tmp_path / "04.ipynb")
    said = [text for cell in code_cells(tmp_path / "04.ipynb") for output in cell.outputs for text in texts_in(output)]
    recorded_instead = [text for text in said if "ImageNet weights cannot be had here" in text]
    # Without: once where they are looked for, and in each cell that would have used them.
    assert len(recorded_instead) >= 7 if not weights else not recorded_instead
    assert any("Right" in text or "No answer yet" in text for text in said), "it ran to its end"


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """Runs it in a project with notebooks 01 and 02 (and a solution) that say where their runs go."""
    module = script("run_all")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(writing, "ROOT", tmp_path)
    monkeypatch.setenv("FMNIST_RECORD", "0")  # so that they are put back after --record and --profile
    monkeypatch.setenv("FMNIST_PROFILE", "smoke")
    text = "[next](02_b.ipynb) [answers](solutions/01_a_solutions.ipynb#1) ![plot](../results/a.png) [x](https://x.org)"
    cells = [nbformat.v4.new_markdown_cell(text)]
    code = "import os\nfrom os import environ as e\n"
    code += "print(e['FMNIST_RECORD'], e['FMNIST_PROFILE'], os.path.basename(os.getcwd()))"
    cells += [nbformat.v4.new_code_cell(code)]
    for name in ("01_a", "02_b", "solutions/01_a_solutions", "solutions/02_b_solutions"):
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        path = tmp_path / "notebooks" / f"{name}.ipynb"
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
    assert code.outputs[0].text == "0 smoke notebooks\n" and code.execution_count == 1
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
    assert code.outputs[0].text == "1 smoke notebooks\n" and "(../results/a.png)" in prose.source


def test_run_all_keeps_solutions_apart(run_all):
    assert set(run_all("solutions")) == {
        "runs/notebooks/solutions/01_a_solutions.ipynb",
        "runs/notebooks/solutions/02_b_solutions.ipynb",
        "runs/benchmarks/solution_times-smoke.json",
    }
    with pytest.raises(SystemExit, match="No notebook's name begins with '08'"):
        run_all("08")


@pytest.mark.parametrize("name", ["solutions/02", "02_b_solutions"])
def test_run_all_runs_one_solutions_notebook(run_all, name):
    changed = run_all(name, "--in-place")
    assert set(changed) == {"notebooks/solutions/02_b_solutions.ipynb", "runs/benchmarks/solution_times-smoke.json"}


def test_run_all_sets_the_profile_of_all_notebooks(run_all):
    changed = run_all("01", "--profile", "cpu")
    assert set(changed) == {"runs/notebooks/01_a.ipynb", "runs/benchmarks/notebook_times-cpu.json"}
    _, code = nbformat.reads(changed["runs/notebooks/01_a.ipynb"].decode(), as_version=4).cells
    assert code.outputs[0].text == "0 cpu notebooks\n"
    with pytest.raises(SystemExit):
        run_all("01", "--profile", "huge")
