"""`fmnist_utils.tune`: real processes on one study, one of them killed; Optuna's own rules; a winner as a recipe."""

import gc
import json
import os
import sys
import weakref
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("optuna")

import optuna
import searches
from matplotlib import pyplot as plt
from optuna.trial import TrialState
from test_survival import in_a_process

from fmnist_utils import data, recipes
from fmnist_utils.preprocess import Augment
from fmnist_utils.recipes import runner
from fmnist_utils.results import writing
from fmnist_utils.tune import __main__ as command
from fmnist_utils.tune import importances
from fmnist_utils.tune import study as tune

BEST = {"views": 2, "cut_after": "block2", "head": "gap-256", "dropout": 0.234567, "lr": 2e-3, "weight_decay": 1e-2}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other processes have
    yield
    torch.set_num_threads(threads)
    plt.close("all")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


def drawn(study, states=tune.DONE) -> pd.DataFrame:
    rows = [{**t.params, "value": t.value, **t.intermediate_values} for t in study.get_trials(states=states)]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache) -> optuna.Study:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    study = searches.search(tmp_path_factory.mktemp("undisturbed") / "studies.db", cache, 5, verbose=False)
    torch.set_num_threads(threads)
    return study


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals of Unix")
@pytest.mark.parametrize("file", ["studies.db", "studies.journal"])
def test_killed_search_loses_nothing_and_two_processes_finish_it(file, tmp_path, cache, undisturbed):
    def work(ends_in: int | None = None) -> None:
        searches.ends_in = ends_in
        searches.search(tmp_path / file, cache, 7)

    assert os.WIFSIGNALED(os.waitpid(in_a_process(lambda: work(ends_in=2)), 0)[1])
    workers = [in_a_process(work) for _ in range(2)]
    assert [os.waitpid(worker, 0)[1] for worker in workers] == [0, 0]
    study = searches.search(tmp_path / file, cache, 7)  # finished: trains nothing more
    trials = study.get_trials()
    assert [t.number for t in trials if t.state == TrialState.RUNNING] == []
    assert len(study.get_trials(states=tune.DONE)) == 7
    lost = trials[2]
    assert lost.state == TrialState.FAIL
    assert [t.params for t in trials if t.user_attrs.get("repeats") == 2] == [lost.params]
    assert drawn(study).lr.nunique() == 7  # nobody tried what another had tried
    # What was drawn at random before the crash, and again after it, is what one process would have drawn.
    pd.testing.assert_frame_equal(drawn(study)[:2], drawn(undisturbed)[:2])
    assert lost.params == undisturbed.trials[2].params


def test_same_seed_makes_the_same_study_even_when_stopped_by_the_keyboard(tmp_path, cache, undisturbed, monkeypatch):
    fits = []

    def stopped(*arguments, **settings):
        fits.append(1)
        if len(fits) == 4:
            raise KeyboardInterrupt
        return fit(*arguments, **settings)

    fit = tune.fit
    monkeypatch.setattr(tune, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        searches.search(tmp_path / "a.db", cache, 5)
    study = searches.search(tmp_path / "a.db", cache, 5)
    assert len(fits) == 6 and len(study.trials) == 6
    pd.testing.assert_frame_equal(drawn(study), drawn(undisturbed))
    other = searches.search("sqlite:///:memory:", cache, 1, seed=1)
    assert other.trials[0].params["lr"] != undisturbed.trials[0].params["lr"]
    # Training and validation images passed the frozen layers once in all these processes.
    assert len(list(cache.glob("*.npy"))) == 2


def test_value_is_the_best_validation_accuracy_and_models_are_freed(cache, monkeypatch):
    models = []

    def build(*arguments, **settings):
        model = build_model(*arguments, **settings)
        models.append(weakref.ref(model))
        return model

    build_model = tune.build_model
    monkeypatch.setattr(tune, "build_model", build)
    study = searches.search("sqlite:///:memory:", cache, 3)
    for trial in study.trials:
        assert len(trial.intermediate_values) == 4
        assert trial.value == max(trial.intermediate_values.values())
        assert trial.user_attrs["weights"].startswith("imagenet:")
    gc.collect()
    assert len(models) == 4 and not any(model() for model in models)


def test_trials_below_the_median_are_pruned_and_a_loss_that_overflows_ends_only_its_trial(cache, monkeypatch):
    accuracies = iter([[0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.6, 0.9], [0.4, 0.6, 0.8, 0.8], [0.1, 0.6, 0.9, 0.7],
                       [0.1, 0.1, 0.74, 0.99], [0.1, 0.1, 0.76, 0.99], []])  # fmt: skip

    def fit(*_, on_epoch, **settings):
        rows = [{"epoch": e, "val_accuracy": a} for e, a in enumerate(next(accuracies), 1)]
        for row in rows:
            on_epoch(row)
        if not rows:
            raise FloatingPointError
        return pd.DataFrame(rows)

    monkeypatch.setattr(tune, "fit", fit)
    study = searches.search("sqlite:///:memory:", cache, 7)
    # The median of the first four in epoch 3 is 0.75; before, and before there are four, nothing is pruned.
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE"] * 4 + ["PRUNED", "COMPLETE", "PRUNED"]
    assert [t.value for t in study.trials] == [0.8, 0.9, 0.8, 0.9, 0.74, 0.99, None]
    assert len(study.trials[4].intermediate_values) == 3
    tune.plot_study(study)


@pytest.mark.parametrize("name", ["a%20b", "a?b=c", "a#b", "a{b}", "é ü"])
def test_a_study_may_have_any_path(name, tmp_path):
    path = tmp_path / name / f"{name}.db"
    path.parent.mkdir()
    for known in ([], ["mine"]):
        assert optuna.get_all_study_names(tune._backend(path)) == known
        optuna.create_study(study_name="mine", storage=tune._backend(path), load_if_exists=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name] and len(list(tmp_path.iterdir())) == 1


def test_an_error_is_raised_and_its_trial_not_repeated(tmp_path, cache, monkeypatch):
    def broken(*_, **settings):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(tune, "fit", broken)
        with pytest.raises(OSError, match="no space left"):
            searches.search(tmp_path / "a.db", cache, 2)
    study = searches.search(tmp_path / "a.db", cache, 2)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_study_belongs_to_its_images(tmp_path, cache, tiny_split):
    searches.search(tmp_path / "a.db", cache, 1)
    train, val = tiny_split
    with pytest.raises(ValueError, match="'tiny' was made with other images or settings .* another name"):
        tune.search("tiny", trials=1, train=train, val=val, storage=tmp_path / "a.db", space=searches.space)


def test_trial_of_another_machine_is_lost_after_a_while(tmp_path):
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("worker", tune._this_process())
    assert not tune._is_lost(study.trials[0])
    trial.set_user_attr("worker", tune._this_process() | {"machine": "another", "process": 1})
    assert not tune._is_lost(study.trials[0])
    running = study.trials[0]
    running.datetime_start -= 2 * tune.LOST_AFTER
    assert tune._is_lost(running)


def test_as_recipe_draws_and_repeats(monkeypatch):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(4):
        trial = study.ask()
        recipe = tune.as_recipe(trial)
        study.tell(trial, 0.5)
        assert tune.as_recipe(study.trials[-1]) == recipe
        assert eval(repr(recipe), {"Augment": Augment}) == recipe  # so it can be pasted
        assert ("augment" in recipe["model"]) == (recipe["views"] == 2)
    assert tune.as_recipe(optuna.trial.FixedTrial(BEST))["model"]["dropout"] == 0.23


def test_winner_runs_as_a_recipe(tmp_path, monkeypatch):
    some = data.load("test").subset(260)
    splits = {"train": some.select(range(160)), "test": some.select(range(60, 260))}
    monkeypatch.setattr(runner, "load", splits.get)
    monkeypatch.setattr(runner, "train_val_split", lambda dataset: (splits["train"], splits["test"]))
    monkeypatch.setattr(runner, "default_folder", lambda: tmp_path)
    found = tune.as_recipe(optuna.trial.FixedTrial(BEST)) | {"images": 60}
    monkeypatch.setitem(recipes.RECIPES, "found", found)
    result = json.loads(recipes.run("found", verbose=False).read_text())
    assert (result["views"], result["cut_after"], result["epochs"]) == (2, "block2", 2)
    assert result["weights"].startswith("imagenet:") and result["engine"] == "eager"


@pytest.fixture(scope="module")
def invented() -> optuna.Study:
    """40 trials whose accuracy depends on the rate most, then on the cut; every fourth is pruned."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(40):
        trial = study.ask()
        recipe = tune.as_recipe(trial)
        value = 0.9 - 0.3 * abs(torch.tensor(recipe["phases"][0]["lr"] / 2e-3).log10().item())
        value += 0.02 * (recipe["model"]["cut_after"] == "block3")
        trial.report(value, 3)
        trial.set_user_attr("weights", "none")
        if number % 4 == 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return study


def test_figure_shows_every_trial(invented):
    figure = tune.plot_study(invented)
    history, *slices = figure.axes
    counts = {c.get_label(): len(c.get_offsets()) for c in history.collections}
    assert counts == {"pruned": 10, "complete": 30}
    best = [t.value for t in invented.trials if t.state == TrialState.COMPLETE]
    assert max(history.lines[0].get_ydata()) == max(best)
    assert len(slices) == 6 and all(sum(len(c.get_offsets()) for c in axis.collections) == 40 for axis in slices)
    logarithmic = {axis.get_title(loc="left") for axis in slices if axis.get_xscale() == "log"}
    assert logarithmic == {"lr", "weight_decay"}


def test_one_failure_does_not_press_the_other_trials_together():
    rows = [{"state": "COMPLETE", "val_accuracy": 0.9 - 0.001 * n, "epochs": 8, **BEST} for n in range(20)]
    failed = {"state": "PRUNED", "val_accuracy": 0.16, "epochs": 3, **BEST}
    history = tune.plot_study(tune.as_study([*rows, failed])).axes[0]
    low, high = history.get_ylim()
    assert high - low < 0.06 and "on the lower edge: 1 below" in history.get_title(loc="left")
    assert min(y for c in history.collections for _, y in c.get_offsets()) == pytest.approx(low)


def test_recorded_trials_become_the_study_that_they_were(invented, tmp_path):
    rows = json.loads(tune.save_study(invented, tmp_path).read_text())["trials"]
    again = tune.as_study(rows)
    for trial, known in zip(again.trials, invented.trials, strict=True):
        assert (trial.params, trial.value, trial.state) == (known.params, known.value, known.state)
        assert trial.distributions == known.distributions


def test_importances_are_shares_of_what_mattered(invented):
    shares = importances(invented)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True) and next(iter(shares)) == "lr"


def test_figure_of_a_single_trial():
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    tune.as_recipe(trial)
    study.tell(trial, 0.5)
    tune.plot_study(study).canvas.draw()


def test_study_is_saved_with_its_figure(invented, tmp_path):
    found = json.loads(tune.save_study(invented, tmp_path).read_text())
    assert len(found["trials"]) == 40 and found["best"]["val_accuracy"] == invented.best_value
    assert found["recipe"]["model"]["name"] == "vgg16"
    assert (tmp_path / "figures" / f"{invented.study_name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "folder"), [([], "runs"), (["--record"], "results"), (["--results", "elsewhere"], "elsewhere")]
)
def test_command_line_prints_the_winner_and_writes_the_study(
    tmp_path, monkeypatch, capsys, tiny_split, options, folder
):
    space = searches.space
    monkeypatch.setattr(command, "splits", lambda: tiny_split)
    monkeypatch.setattr(command, "as_recipe", space)
    monkeypatch.setattr(tune, "as_recipe", space)
    monkeypatch.setattr(writing, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_RECORD", "0")  # so that it is put back
    monkeypatch.setattr(tune.search, "__kwdefaults__", tune.search.__kwdefaults__ | {"space": space})
    storage = tmp_path / "new folder" / "a.db"
    line = ["tune", "--trials", "2", "--storage", str(storage), "--study", "mine", "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line + options)
    command.main()
    shown = capsys.readouterr().out
    assert "trial 1: " in shown and "best trial" in shown and "{'model': {'name': 'vgg16'" in shown
    assert storage.is_file()
    found = json.loads((tmp_path / folder / "benchmarks" / "mine.json").read_text(encoding="utf-8"))
    assert len(found["trials"]) == 2 and "optuna" in found["versions"]
    assert (tmp_path / folder / "figures" / "mine.png").is_file()
    assert not [other for other in {"runs", "results"} - {folder} if (tmp_path / other).exists()]
