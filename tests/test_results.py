"""`fmnist_utils.results`: where runs go and what their files hold, and the pages against the files under results/."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import psutil
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import f1_score

from fmnist_utils import ROOT
from fmnist_utils.data import load, train_val_split
from fmnist_utils.results import (
    benchmarks_table,
    default_folder,
    load_predictions,
    load_results,
    peak_memory_mb,
    results_table,
    save_benchmark,
    save_figure,
    save_result,
    times_table,
    update_pages,
    with_tables,
    write_text,
    writing,
)

# The schema of results/*.json: what every recorded run has, and what each nested part of it has.
RESULT_KEYS = {
    *("recipe", "profile", "backbone", "weights", "cut_after", "image_size", "train_images", "epochs", "seeds"),
    *("metrics", "seconds", "peak_memory_mb", "parameters", "history", "hardware", "versions", "date"),
}
BENCHMARK_KEYS = {
    *("name", "profile", "setting", "ours", "reference", "ratio", "unit", "hardware", "versions", "date"),
}
METRICS = {"test_accuracy": 0.912345678, "val_accuracy": 0.92, "train_accuracy": 0.95, "macro_f1": 0.91}
SECONDS = {"prefix_pass": 12.345, "training": 3.0, "evaluation": 0.5, "total": 15.9}


@pytest.fixture
def project(tmp_path):
    """A project folder with a README that has the two markers, and without results."""
    readme = "# Title\n\n<!-- results:start (made by x) -->\nold\n<!-- results:end -->\n\nThe end: 100%.\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    return tmp_path


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(project, model, recipe="vgg16-frozen", **changes):
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.5, 0.5], "val_accuracy": [0.8, 0.9]}).set_index("epoch")
    settings = {"train_images": 1000, "history": history, "metrics": METRICS, "seconds": SECONDS}
    return save_result(recipe, model, **{"folder": project / "results"} | settings | changes)


# ----------------------------------------------------------------------------------------------------- result files


def test_result_has_exactly_the_keys_of_the_schema(small_vgg, project):
    model = small_vgg()
    metrics = METRICS | {"test_accuracy_sd": 0.001}
    path = record(project, model, seeds=(0, 1), metrics=metrics)
    assert path == project / "results" / "vgg16-frozen-smoke.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(result) == RESULT_KEYS | {
        "mflops_per_image",
        "weights_origin",
    }  # which the first recorded runs do not have
    assert set(result["parameters"]) == {"total", "trainable"} and {"device", "cpu", "cores"} <= set(result["hardware"])
    assert {"python", "torch", "numpy"} <= set(result["versions"])
    assert result["metrics"] == metrics | {"test_accuracy": 0.91235}
    assert result["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert result["parameters"]["trainable"] == sum(p.numel() for p in model.head.parameters())
    assert result["weights"] == model.weights and re.fullmatch(r"imagenet:[0-9a-f]{12}", model.weights)
    assert (result["profile"], result["backbone"], result["cut_after"]) == ("smoke", "vgg16", "block1")
    assert (result["image_size"], result["train_images"], result["epochs"], result["seeds"]) == (32, 1000, 2, [0, 1])
    assert result["history"] == [
        {"epoch": 1, "train_loss": 1.5, "val_accuracy": 0.8},
        {"epoch": 2, "train_loss": 0.5, "val_accuracy": 0.9},
    ]


def test_second_run_replaces_the_first_and_a_failed_one_does_not(small_vgg, project):
    model = small_vgg()
    path = record(project, model)
    assert record(project, model, train_images=2000) == path
    assert json.loads(path.read_text())["train_images"] == 2000
    with pytest.raises(TypeError):
        record(project, model, note=object())
    assert json.loads(path.read_text())["train_images"] == 2000
    assert names_in(path.parent) == [path.name]


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_no_run_touches_the_readme(small_vgg, project, monkeypatch, profile):
    monkeypatch.setenv("FMNIST_PROFILE", profile)
    before = (project / "README.md").read_bytes()
    record(project, small_vgg())
    save_benchmark("engine", setting="few", ours=1.0, reference=3.0, unit="s", folder=project / "results")
    assert (project / "README.md").read_bytes() == before
    assert len(load_results(project / "results")) == (profile == "cpu")


def test_recorded_runs_appear_in_the_readme_between_the_markers_best_first(small_vgg, project, monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    model = small_vgg()
    record(project, model, "worse", metrics=METRICS | {"test_accuracy": 0.85})
    record(project, model, "better")
    assert update_pages(project / "results") == ["README.md"] and update_pages(project / "results") == []
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Title\n\n<!-- results:start (made by x) -->\n| run |")
    assert readme.endswith("|\n<!-- results:end -->\n\nThe end: 100%.\n")
    assert readme.index("`better-cpu`") < readme.index("`worse-cpu`")
    assert "91.23%" in readme and "85.00%" in readme and "old" not in readme
    assert names_in(project) == ["README.md", "results"]
    assert list(load_results(project / "results")["metrics.test_accuracy"]) == [0.91235, 0.85]
    assert with_tables(readme, project / "results") == readme


def test_own_runs_stand_beside_the_recorded_ones_and_in_their_place(small_vgg, project):
    model, runs = small_vgg(), project / "runs"
    for recipe in ("mine-too", "theirs"):
        record(project, model, recipe)
    record(project, model, "mine-too", metrics=METRICS | {"test_accuracy": 0.85}, folder=runs)
    record(project, model, "mine", metrics=METRICS | {"test_accuracy": 0.7}, folder=runs)
    found = load_results(project / "results", profiles=["smoke"], own=runs)
    assert list(zip(found.recipe, found["metrics.test_accuracy"], strict=True)) == [
        ("theirs", 0.91235),
        ("mine-too", 0.85),
        ("mine", 0.7),
    ]
    assert set(load_results(project / "results", profiles=["smoke"]).recipe) == {"mine-too", "theirs"}
    recorded = project / "results"
    assert load_results(recorded, ["smoke"], own=recorded).equals(load_results(recorded, ["smoke"]))


def test_runs_of_several_seeds_show_their_deviation(small_vgg, project, monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    record(project, small_vgg(), seeds=(0, 1, 2), metrics=METRICS | {"test_accuracy_sd": 0.00123})
    assert "| 91.23% ± 0.12 (3 seeds) |" in results_table(project / "results")


def test_predictions_of_a_run_return_within_the_precision_of_float16(small_vgg, project):
    draw = np.random.default_rng(0)
    soft, hard = draw.dirichlet(np.ones(10), 50), draw.dirichlet(np.full(10, 0.05), 200)
    path = record(project, small_vgg(), predictions={"val": soft, "test": hard.astype(np.float32)})
    for split, expected in (("val", soft), ("test", hard)):
        found = load_predictions(path.stem, split, folder=project / "results")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        # A logarithm is off by 2**-11 of itself at most, and -p log p is never above 0.37; so is what scales the sum.
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=1.1e-12)  # 2**-11 of 27; nothing below 1e-12
    assert names_in(project / "results" / "predictions") == ["vgg16-frozen-smoke.npz"]
    assert names_in(path.parent) == ["predictions", path.name]


def test_missing_predictions_are_an_error_that_names_those_there_are(small_vgg, project):
    folder = project / "results"
    with pytest.raises(FileNotFoundError, match="'small-cnn-full'.*there are: none"):
        load_predictions("small-cnn-full", folder=folder)
    with pytest.raises(FileNotFoundError, match="small-cnn-full.*Your own runs are read with folder=ROOT / 'runs'"):
        load_predictions("nobody's")
    for recipe in ("b", "a"):
        record(project, small_vgg(), recipe, predictions={"test": np.full((2, 10), 0.1)})
    with pytest.raises(FileNotFoundError, match="there are: a-smoke, b-smoke"):
        load_predictions("small-cnn-full", folder=folder)
    with pytest.raises(ValueError, match="split='tset' is not known. Did you mean 'test'"):
        load_predictions("a-smoke", "tset", folder=folder)


def test_benchmarks_appear_in_the_readme_and_smoke_ones_do_not(project, monkeypatch):
    (project / "README.md").write_text("<!-- benchmarks:start -->\nold\n<!-- benchmarks:end -->\n", encoding="utf-8")
    settings = {"reference": 3.0, "unit": "images/s", "folder": project / "results"}
    save_benchmark("skipped", setting="few", ours=1.0, **settings)
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    save_benchmark("engine", setting="VGG16", ours=12345.678, **settings)
    update_pages(project / "results")
    assert (project / "README.md").read_text(encoding="utf-8").splitlines()[1:-1] == [
        "| benchmark | ours | against | | what was measured |",
        "|---|---:|---:|---|---|",
        "| [`engine-cpu`](results/benchmarks/engine-cpu.json) | 12,346 | 3 | images/s | VGG16 |",
    ]


def test_links_in_a_table_lead_from_the_page_that_holds_it(project):
    page = project / "docs" / "speed.md"
    page.parent.mkdir()
    page.write_text("<!-- benchmarks:start -->\n<!-- benchmarks:end -->\n", encoding="utf-8")
    save_benchmark("engine", setting="few", ours=1.0, reference=3.0, unit="s", folder=project / "results")
    made = project / "results" / "benchmarks" / "engine-smoke.json"
    text = made.read_text(encoding="utf-8").replace('"smoke"', '"cpu"')
    made.with_name("engine-cpu.json").write_text(text, encoding="utf-8")
    assert update_pages(project / "results") == ["README.md", "docs/speed.md"]
    assert "(../results/benchmarks/engine-cpu.json)" in page.read_text(encoding="utf-8")


def test_times_of_notebooks_are_shown_in_minutes(project):
    assert len(times_table(project / "results").splitlines()) == 2
    times = {"03_vgg16": {"seconds": 90, "peak_memory_mb": 2912}}
    path = project / "results" / "benchmarks" / "notebook_times-cpu.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"name": "notebook_times", "profile": "cpu", "notebooks": times}))
    assert times_table(project / "results").splitlines()[2:] == ["| 03 vgg16 | 1.5 | 2.9 GB |"]
    text = with_tables("<!-- times:start -->\n<!-- times:end -->", project / "results")
    assert text.splitlines()[3] == "| 03 vgg16 | 1.5 | 2.9 GB |"
    times = {name: {"seconds": 45, "peak_memory_mb": memory} for name, memory in (("01_a", 900), ("02_b", 1210))}
    smoke = json.dumps({"name": "notebook_times", "profile": "smoke", "notebooks": times})
    path.with_name("notebook_times-smoke.json").write_text(smoke)
    assert times_table(project / "results").splitlines()[3:] == ["| all 2 with `--profile smoke` | 1.5 | 1.2 GB |"]


def test_readme_without_markers_stays_as_it_is(project):
    assert with_tables("# Title\n", project / "results") == "# Title\n"


def test_no_results_make_an_empty_table(project):
    assert load_results(project / "results").empty
    assert len(results_table(project / "results").splitlines()) == 2


def test_benchmark_has_exactly_the_keys_of_the_schema(project):
    path = save_benchmark(
        "pipeline", setting="64 px", ours=300.0, reference=40.0, unit="images/s", folder=project / "results"
    )
    assert path == project / "results" / "benchmarks" / "pipeline-smoke.json"
    benchmark = json.loads(path.read_text(encoding="utf-8"))
    assert set(benchmark) == BENCHMARK_KEYS
    assert (benchmark["ours"], benchmark["reference"], benchmark["ratio"]) == (300.0, 40.0, 7.5)
    assert load_results(project / "results", profiles=["smoke"]).empty  # benchmarks are no runs


# ---------------------------------------------------------------------------------------------- where runs are written


@pytest.mark.parametrize(("value", "folder"), [(None, "runs"), ("", "runs"), ("0", "runs"), ("1", "results")])
def test_runs_are_recorded_on_request_only(monkeypatch, value, folder):
    if value is not None:
        monkeypatch.setenv("FMNIST_RECORD", value)
    assert default_folder() == ROOT / folder


def test_a_request_that_is_not_understood_is_refused(monkeypatch):
    monkeypatch.setenv("FMNIST_RECORD", "yes")
    with pytest.raises(ValueError, match="FMNIST_RECORD='yes' is not known: set it to 1"):
        default_folder()


@pytest.mark.skipif(not shutil.which("git"), reason="asks git what has changed")
def test_git_sees_no_change_unless_a_run_is_recorded(small_vgg, project, monkeypatch):
    def git(*arguments: str) -> list[str]:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x", *arguments]
        return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.splitlines()

    shutil.copy(ROOT / ".gitignore", project)
    monkeypatch.setattr(writing, "ROOT", project)
    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    model, predictions = small_vgg(), {"test": np.full((2, 10), 0.1)}
    record(project, model)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "as cloned")

    def save_everything() -> None:
        record(project, model, predictions=predictions, train_images=7, folder=None)
        save_benchmark("engine", setting="few", ours=1.0, reference=3.0, unit="s", figure=Figure())
        save_figure(Figure(), "layers")

    save_everything()
    assert git("status", "--porcelain") == []
    written = sorted(path.relative_to(project).as_posix() for path in (project / "runs").rglob("*.*"))
    names = ["benchmarks/engine-cpu.json", "figures/engine-cpu.png", "figures/layers.png"]
    names += ["predictions/vgg16-frozen-cpu.npz", "vgg16-frozen-cpu.json"]
    assert written == [f"runs/{name}" for name in names]

    monkeypatch.setenv("FMNIST_RECORD", "1")
    save_everything()
    changed = git("status", "--porcelain", "--untracked-files=all")
    assert sorted(line.split()[1] for line in changed) == [f"results/{name}" for name in names]


# --------------------------------------------------------------------------------------------- stray and damaged files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:40], "not sound JSON"),
        (lambda text: "", "not sound JSON"),
        (lambda text: "[1, 2]", "holds a list"),
        (lambda text: '{"title": "notes of mine"}', "lacks recipe, profile, backbone"),
        (lambda text: text.replace('"macro_f1"', '"f1"'), "lacks metrics.macro_f1"),
        (lambda text: text.replace('"device": "cpu"', '"device": "cuda"'), "lacks hardware.gpu"),
        (lambda text: text.replace("0.91235", '"very good"'), "has no number as test_accuracy"),
        (lambda text: re.sub(r'"seeds": \[[^]]*\]', '"seeds": 3', text), "of the wrong kind"),
        (lambda text: text.replace("vgg16-frozen", "another"), "should be called another-smoke.json"),
    ],
)
def test_a_stray_or_damaged_file_is_called_by_its_name(small_vgg, project, change, said):
    path = record(project, small_vgg())
    changed = change(path.read_text(encoding="utf-8"))
    path.write_text(changed, encoding="utf-8")
    for read in (load_results, results_table, update_pages):
        with pytest.raises(ValueError, match=f"vgg16-frozen-smoke.json cannot be used: .*{said}.*take it out of"):
            read(project / "results")
    assert "old" in (project / "README.md").read_text(encoding="utf-8")


def test_bytes_that_are_no_text_are_called_by_their_file_name(project):
    (project / "results").mkdir()
    (project / "results" / "picture.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="picture.json cannot be used: it is not sound JSON"):
        load_results(project / "results")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not sound"), ("{}", "lacks name, profile"), ('{"ratio": 2}', "lacks name"),
                       ('{"name": "x", "profile": "cpu", "ratio": 2, "unit": "s"}', "lacks ours, reference, setting")]
)  # fmt: skip
def test_a_stray_benchmark_is_called_by_its_name(project, text, said):
    path = project / "results" / "benchmarks" / "stray-cpu.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"stray-cpu.json cannot be used: it .*{said}"):
        benchmarks_table(project / "results")


def test_files_that_somebody_is_just_writing_are_left_out(small_vgg, project):
    path = record(project, small_vgg())
    path.with_name(".123-vgg16-block3-cpu.json").write_text('{"recipe": ')
    assert len(load_results(project / "results", profiles=["smoke"])) == 1


def test_a_run_without_what_the_tables_show_is_not_written(small_vgg, project):
    with pytest.raises(ValueError, match="The run vgg16-frozen-smoke lacks metrics.test_accuracy_sd"):
        record(project, small_vgg(), seeds=(0, 1))
    with pytest.raises(ValueError, match="lacks seconds.total"):
        record(project, small_vgg(), seconds={"training": 3.0})
    assert not (project / "results").exists()


# -------------------------------------------------------------------------------------------------------- the machine


def test_peak_memory_is_at_least_what_the_process_has_now():
    now = psutil.Process().memory_info().rss / 1e6
    assert 0.9 * now < peak_memory_mb() < 100_000
    block = np.ones(60_000_000, dtype=np.uint8)
    assert peak_memory_mb() >= 0.9 * (now + 60)
    del block


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no record of children")
def test_peak_memory_of_children_is_that_of_the_largest_that_ended():
    subprocess.run([sys.executable, "-c", "held = bytearray(b'1') * 1_000_000_000"], check=True)
    assert 1_000 < peak_memory_mb(of_children=True) < 100_000


# --------------------------------------------------------------------------------------------- README and results/

# Accuracies that others measured, and where they say so.
CITED = {
    "83.5": "people, according to the data set's README (github.com/zalandoresearch/fashion-mnist)",
    "93.5": "VGG16, same source",
    "94.9": "ResNet18, same source",
    "96.35": "WRN-28-10 with random erasing: Zhong et al. (2017), arXiv:1708.04896",
    "96.91": "fine-tuned DARTS: Tanveer et al. (2020), arXiv:2006.09042",
}


def recorded_accuracies(folder) -> list[float]:
    """Everything under results/ that is named an accuracy or F1, in metrics or anywhere but the epochs' history."""
    found = []

    def collect(value, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key != "history":
                    collect(inner, name if "accurac" in name else key)
        elif isinstance(value, list):
            for inner in value:
                collect(inner, name)
        elif isinstance(value, float) and ("accurac" in name or "f1" in name or name == "mean"):
            found.append(value)

    for path in sorted(folder.rglob("*.json")):
        if not path.stem.endswith("-smoke"):
            collect(json.loads(path.read_text(encoding="utf-8")), "")
    return found


def unsupported_accuracies(readme: str, recorded: list[float]) -> list[str]:
    """The percentages from 70 up to but without 100 in prose that no recorded number gives when rounded alike."""
    prose = re.sub(r"<!-- results:start.*?<!-- results:end -->", "", readme, flags=re.DOTALL)
    prose = re.sub(r"<[^>]*>", "", prose)  # widths of images
    unsupported = []
    # Both ends of a range such as 93-94% are accuracies.
    for match in re.finditer(r"(?<![\d.])((?:\d+(?:\.\d+)?\s*(?:-|–|to|and|or)\s*)?\d+(?:\.\d+)?)\s*%", prose):
        for text in re.findall(r"\d+(?:\.\d+)?", match[1]):
            decimals = len(text.partition(".")[2])
            supported = any(f"{100 * value:.{decimals}f}" == text for value in recorded)
            if 70 <= float(text) < 100 and not supported and text not in CITED:
                unsupported.append(text)
    return unsupported


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("We reach 94.4% with two views.", []),
        ("We reach 94.5% with two views.", ["94.5"]),
        ("It is 94.41 % or 94%, people have 83.5%.", []),
        ("94.42% and 93-94 %", ["94.42", "93"]),
        ('57% of the time, 100% offline <img width="80%">', []),
        ("<!-- results:start -->\n| 77.77% |\n<!-- results:end -->", []),
    ],
)
def test_invented_accuracies_would_be_noticed(readme, expected):
    assert unsupported_accuracies(readme, [0.94412, 0.5]) == expected


def test_accuracies_are_collected_from_metrics_and_not_from_histories(tmp_path):
    run = {
        "metrics": {"test_accuracy": 0.9, "macro_f1": 0.8},
        "seconds": {"total": 0.7},
        "history": [{"accuracy": 0.6}],
    }
    run["class_accuracies"] = {"Shirt": 0.75, "Bag": [0.99]}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "a-cpu.json").write_text(json.dumps(run))
    (tmp_path / "b-smoke.json").write_text(json.dumps({"metrics": {"test_accuracy": 0.1}}))
    assert recorded_accuracies(tmp_path) == [0.9, 0.8, 0.75, 0.99]


#: Everything that is read before, beside or after the notebooks.
PAGES = [ROOT / name for name in ("README.md", "TEACHING.md", "CONTRIBUTING.md")]
PAGES += [page for folder in ("benchmarks", "docs", "results") for page in sorted((ROOT / folder).glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@every_page
def test_tables_show_what_is_recorded(page):
    text = page.read_text(encoding="utf-8")
    assert with_tables(text, page=page) == text, "run python -m fmnist_utils.results"


def test_each_table_stands_on_one_page():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for marker in ("results", "benchmarks", "times"):
        assert texts.count(f"<!-- {marker}:start") == texts.count(f"<!-- {marker}:end -->") == 1


@every_page
def test_no_page_claims_an_accuracy_that_is_not_recorded(page):
    assert unsupported_accuracies(page.read_text(encoding="utf-8"), recorded_accuracies(ROOT / "results")) == []


def anchors(page) -> set[str]:
    """What the headings of a Markdown page are called after # by code hosts."""
    headings = re.findall(r"^#+ (.+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_files_figures_and_headings_that_a_page_links_to_exist(page):
    targets = re.findall(r"\]\(\s*([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = []
    for target in (target for target in targets if "://" not in target):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (heading and heading not in anchors(file)):
            missing.append(target)
    assert missing == []
    assert targets or page.name == "CONTRIBUTING.md"


def test_readme_can_be_read_in_two_minutes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120 and len(readme.split()) <= 900
    for command in ('".[notebooks]" && python notebooks/run_all.py', '".[dev]" && python -m pytest'):
        assert f"\npython -m pip install -e {command}\n" in readme


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_every_recorded_run_follows_the_schema(path):
    run = json.loads(path.read_text(encoding="utf-8"))
    assert set(run) >= RESULT_KEYS
    assert path.name == f"{run['recipe']}-{run['profile']}.json"
    assert run["weights"] == "none" or re.fullmatch(r"imagenet:[0-9a-f]{12}", run["weights"])
    assert (run.get("weights_origin", "random") == "random") == (
        run["weights"] == "none" or "weights_origin" not in run
    )
    assert 0 < run["metrics"]["test_accuracy"] < 1 and len(run["history"]) == run["epochs"]


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "predictions").glob("*.npz")), ids=lambda path: path.stem)
def test_recorded_predictions_give_the_recorded_accuracies(path):
    run = json.loads((ROOT / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
    recorded = {key: values[0] for key, values in run.get("per_seed", {}).items()}  # predictions are the first seed's
    recorded = run["metrics"] | recorded
    labels = {"test": load("test").labels.numpy(), "val": train_val_split(load("train"))[1].labels.numpy()}
    for split, known in labels.items():
        with np.load(path) as file:
            logs = file[split]
        assert logs.dtype == np.float16 and len(logs) == len(known)
        predicted, ordered = logs.argmax(1), np.sort(logs, 1)
        ties = (ordered[:, -1] == ordered[:, -2]).sum()  # which of two equals was larger, float16 has forgotten
        right = round(recorded[f"{split}_accuracy"] * len(known))
        assert abs((predicted == known).sum() - right) <= ties <= 2
        if split == "test":
            assert f1_score(known, predicted, average="macro") == pytest.approx(recorded["macro_f1"], abs=2e-4)


def test_result_files_are_written_beside_and_moved(project, monkeypatch, small_vgg):
    """Somebody who reads while a run is being recorded must never see half a file."""
    path = record(project, small_vgg())
    before = path.read_bytes()

    def disk_full(self, *arguments, **settings):
        self.write_bytes(b'{"recipe": "vgg')
        raise OSError("No space left on device")

    monkeypatch.setattr(type(path), "write_text", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "{}")
    assert path.read_bytes() == before and names_in(path.parent) == [path.name]
