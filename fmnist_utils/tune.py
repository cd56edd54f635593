"""Search with Optuna for the head, the cut and the training that suit the *validation* images best.

``python -m fmnist_utils.tune --trials 40`` starts a study or goes on with it; the same line in a second terminal takes
its share of the trials. No function here takes test images. Explained in ``notebooks/06_tuning_and_backbones.ipynb``;
needs ``pip install -e ".[tune]"``.
"""

import argparse
import datetime
import hashlib
import json
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from pprint import pformat

import numpy as np
import optuna
import psutil
from filelock import FileLock
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, Trial, TrialState

from fmnist_utils import ROOT, pick, profile
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.data import FashionMNIST, load, replacing, train_val_split
from fmnist_utils.models import build_model, leaves
from fmnist_utils.recipes import MIRROR
from fmnist_utils.results import hardware, versions, write_text
from fmnist_utils.train import fit

#: Trials drawn at random before the sampler learns from them.
RANDOM_TRIALS = 6
#: A trial of another machine, whose processes cannot be seen from here, counts as lost when it began so long ago.
LOST_AFTER = datetime.timedelta(hours=1)
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def as_recipe(trial: Trial | FrozenTrial) -> dict:
    """The search space, and what one trial of it means: an entry for ``recipes.RECIPES``.

    A running trial draws its values here; a finished one, such as ``study.best_trial``, gives the recipe that it was,
    in the profile of its search. Explained in notebooks/06_tuning_and_backbones.ipynb.
    """
    model = {
        "name": "vgg16",
        "cut_after": trial.suggest_categorical("cut_after", ("block2", "block3", "block4")),
        "head": trial.suggest_categorical("head", ("linear", "gap-256", "pooled", "conv")),
        "image_size": pick(smoke=32, cpu=56, full=56),
        "dropout": round(trial.suggest_float("dropout", 0.1, 0.7), 2),
    }
    phase = {
        "trainable": "head",
        "epochs": pick(smoke=2, cpu=8, full=10),
        "lr": _short(trial.suggest_float("lr", 1e-4, 1e-2, log=True)),
        "weight_decay": _short(trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)),
    }
    views = trial.suggest_categorical("views", (1, 2))
    return {"model": model | ({"augment": MIRROR} if views == 2 else {}), "phases": [phase], "views": views}


def search(
    name: str,
    *,
    trials: int,
    train: FashionMNIST,
    val: FashionMNIST,
    storage: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    space: Callable[[Trial | FrozenTrial], dict] = as_recipe,
    verbose: bool = True,
) -> optuna.Study:
    """Bring study ``name`` to ``trials`` finished trials, those of earlier calls included; returns it.

    A trial trains ``space(trial)`` (a recipe of one phase on frozen layers and at most two views) on ``train`` and is
    worth its best accuracy on ``val``. TPE proposes the values (Bergstra et al., 2011); a trial is pruned when it is
    below the median of the others at the same epoch (Golovin et al., 2017, "Vizier"). The frozen layers run once per
    cut, over each image and its mirror image; all trials share these features, several processes through the folder
    ``cache`` (without one they are in memory).

    ``storage`` is a SQLite file (default ``data/cache/studies.db``), a journal (Optuna's ``JournalStorage``) where the
    name ends in ``.log`` or ``.journal``, or the URL of a database. After a crash the same call goes on: a trial that
    was under way is done again with the same values. Several processes with the same call share the trials.

    What a trial draws depends on ``seed``, on how many trials there are and on their results. So one process makes the
    same study each time, interrupted or not; with several, it depends on their speed which results are known when.

    Raises ``ValueError`` where the study was made with other images or in another profile, and what ``build_model``,
    ``cache_features`` and ``fit`` raise; only a loss that is no longer a number counts as a pruned trial. Explained in
    notebooks/06_tuning_and_backbones.ipynb.
    """
    place = None if "://" in str(storage) else Path(storage or ROOT / "data" / "cache" / "studies.db")
    shown = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with _one_at_a_time(place):  # or two processes might create the same tables, or repeat the same lost trial
            study = optuna.create_study(
                study_name=name,
                storage=_backend(place) if place else str(storage),
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
                load_if_exists=True,
            )
            _check_task(study, train, val)
            for lost in filter(_is_lost, study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
                _repeat(study, lost)
        features: dict[str, tuple] = {}
        while _count(study, *DONE, TrialState.RUNNING) < trials:
            trial = study.ask()
            trial.set_user_attr("worker", _this_process())
            before = _count(study, *DONE, TrialState.WAITING)
            place_in_line = before + _count(study, TrialState.RUNNING, up_to=trial.number)
            if place_in_line > trials:  # another process has taken the last one
                study.tell(trial, state=TrialState.FAIL)
                continue
            study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed + place_in_line)
            _run(study, trial, space, train, val, features, cache, seed)
            if verbose:
                print(_line(study.get_trials(deepcopy=False)[trial.number]))
        if verbose and (others := _count(study, TrialState.RUNNING)):
            print(f"{others} more still running in other processes")
    finally:
        optuna.logging.set_verbosity(shown)
    return study


def _run(study: optuna.Study, trial: Trial, space, train, val, features: dict, cache, seed: int) -> None:
    def report(row: dict) -> None:
        trial.report(row["val_accuracy"], row["epoch"])
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        recipe = space(trial)
        (phase,) = recipe["phases"]
        model = build_model(**recipe["model"], seed=seed)
        trial.set_user_attr("weights", model.weights)
        both, held_out = _features(recipe["model"], train, val, features, cache)
        inputs = both if recipe.get("views", 1) > 1 else both.view(0)
        arguments = {key: value for key, value in phase.items() if key != "trainable"}
        try:
            history = fit(model, inputs, held_out, **arguments, seed=seed, progress=False, on_epoch=report)
        except (optuna.TrialPruned, FloatingPointError):
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            study.tell(trial, history.val_accuracy.max(), skip_if_finished=True)
    except Exception:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    except BaseException:  # stopped by the keyboard
        _repeat(study, trial)
        raise


def _features(settings: dict, train, val, known: dict, cache) -> tuple[CachedFeatures, CachedFeatures]:
    """Both views of ``train`` and one of ``val``, the same for all heads."""
    settings = {"augment": MIRROR} | {k: v for k, v in settings.items() if k not in ("head", "dropout")}
    if (key := repr(sorted(settings.items()))) not in known:
        model = build_model(**settings)
        border = 1 + len(leaves(model.backbone))  # a pooling of the head is left to the trial
        with _one_at_a_time(Path(cache) / "search" if cache else None):
            known[key] = tuple(
                cache_features(model, data, views=views, border=border, folder=cache, verbose=False)
                for data, views in ((train, 2), (val, 1))
            )
    return known[key]


def _one_at_a_time(path: Path | None):
    if path is None:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.queue")  # the system lets go of it when a process dies


def _backend(path: Path) -> optuna.storages.BaseStorage:
    if path.suffix not in (".log", ".journal"):
        return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    from optuna.storages.journal import JournalFileBackend

    # Optuna's own locks stay for half a minute when a process dies that holds one.
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), FileLock(f"{path}.lock")))


def _check_task(study: optuna.Study, train: FashionMNIST, val: FashionMNIST) -> None:
    """One study compares trials on the same images only."""
    data = {k: hashlib.sha256(v.images.numpy().tobytes()).hexdigest()[:16] for k, v in (("train", train), ("val", val))}
    task = {**data, "train_images": len(train), "val_images": len(val), "profile": profile()}
    earlier = study.user_attrs.get("task", task)
    if earlier != task:
        raise ValueError(
            f"Study {study.study_name!r} was made with other images or settings ({earlier}) than these ({task}): use "
            "those, or give the new search another name."
        )
    study.set_user_attr("task", task)


def _count(study: optuna.Study, *states: TrialState, up_to: float = np.inf) -> int:
    return sum(trial.number <= up_to for trial in study.get_trials(deepcopy=False, states=states))


def _this_process() -> dict:
    # The machine's name is nobody's business in a study that may be passed on.
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return {"machine": machine, "process": os.getpid(), "began": psutil.Process().create_time()}


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether the process that runs the trial is gone."""
    worker, this = trial.user_attrs.get("worker"), _this_process()
    if worker is None or worker["machine"] != this["machine"]:
        return datetime.datetime.now() - trial.datetime_start > LOST_AFTER
    try:
        return psutil.Process(worker["process"]).create_time() != worker["began"]
    except psutil.NoSuchProcess:
        return True


def _repeat(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _line(trial: FrozenTrial) -> str:
    values = ", ".join(f"{k} {_short(v) if isinstance(v, float) else v}" for k, v in trial.params.items())
    accuracy = f"{trial.value:.2%}" if trial.value is not None else "no accuracy"
    return f"trial {trial.number}: {accuracy}{' (pruned)' * (trial.state == TrialState.PRUNED)}: {values}"


def plot_study(study: optuna.Study) -> Figure:
    """History, importances, parallel coordinates and slices of a study; pruned trials are grey crosses.

    A pruned trial stands at the accuracy it was stopped at. Importances are fANOVA's (Hutter et al., 2014) over the
    complete trials: shares of the variance of accuracy. Explained in notebooks/06_tuning_and_backbones.ipynb.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

    from fmnist_utils.plots import COLORS, use_style

    use_style()
    trials = [t for t in study.get_trials(deepcopy=False, states=DONE) if t.value is not None]
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    names = sorted({name for t in trials for name in t.params})
    figure = plt.figure(figsize=(11, 11))
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=(1, 1, 0.9), hspace=0.04)
    percent = PercentFormatter(1, decimals=0)

    def scatter(axis, x) -> None:
        for state, style in (("PRUNED", {"marker": "x", "color": COLORS["muted"]}), ("COMPLETE", {"alpha": 0.7})):
            chosen = [t for t in trials if t.state.name == state]
            axis.scatter([x(t) for t in chosen], [t.value for t in chosen], s=28, label=state.lower(), **style)
        axis.yaxis.set_major_formatter(percent)

    axis, right = upper.subplots(1, 2, width_ratios=(3, 2))
    scatter(axis, lambda t: t.number)
    best = np.maximum.accumulate([t.value if t in complete else 0 for t in trials])
    axis.step([t.number for t in trials], np.where(best > 0, best, np.nan), where="post", color=COLORS["accent"])
    axis.set(title="History (line: best so far)", xlabel="trial", ylabel="validation accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="lower right")

    right.set(title="Importance", xlabel="share of the variance of accuracy")
    if len({t.value for t in complete}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        bars = right.barh(list(shares)[::-1], list(shares.values())[::-1], color=COLORS["train"])
        right.bar_label(bars, [f"{100 * bar.get_width():.0f}%" for bar in bars], padding=3)
        right.set_xlim(0, 1.2 * max(shares.values()))
        right.xaxis.set_major_formatter(percent)
        right.grid(axis="y", visible=False)

    axis = middle.subplots()
    scales = {name: _scale([t for t in trials if name in t.params], name) for name in names}
    values = [t.value for t in trials]
    columns = [*names, "validation accuracy"]
    ends = (min(values), max(values))
    scales["validation accuracy"] = (ends, lambda v: (v - ends[0]) / ((ends[1] - ends[0]) or 1), "{:.1%}".format)
    top = study.best_trial if complete else None
    for t in sorted((t for t in trials if set(names) <= set(t.params)), key=lambda t: (t in complete, t.value)):
        heights = [scales[name][1](t.params[name]) for name in names] + [scales["validation accuracy"][1](t.value)]
        muted = {"color": COLORS["muted"], "alpha": 0.35, "lw": 1}
        style = muted if t not in complete else {"color": COLORS["train"], "alpha": 0.5, "lw": 1.5}
        is_top = top is not None and t.number == top.number
        axis.plot(heights, **{"color": COLORS["accent"], "lw": 3, "zorder": 3} if is_top else style)
    for x, name in enumerate(columns):
        ticks, height, text = scales[name]
        axis.axvline(x, color="black", lw=0.8)
        for tick in ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axis.text(x, height(tick), f" {text(tick)}", fontsize=9, va="center", bbox=box, zorder=4)
    axis.set(title="Every trial a line (best: thick; pruned: grey)", yticks=[], xlim=(-0.1, len(names) + 0.45))
    axis.set_xticks(range(len(columns)), columns)
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)

    for column, (axis, name) in enumerate(
        zip(lower.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True)
    ):
        kind = next(t.distributions[name] for t in trials if name in t.distributions)
        if isinstance(kind, optuna.distributions.CategoricalDistribution):
            scatter(axis, lambda t, name=name, kind=kind: kind.choices.index(t.params[name]))
            axis.set_xticks(range(len(kind.choices)), kind.choices)
            axis.set_xlim(-0.5, len(kind.choices) - 0.5)
            if any(isinstance(choice, str) for choice in kind.choices):
                plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
        else:
            scatter(axis, lambda t, name=name: t.params[name])
            axis.set_xscale("log" if kind.log else "linear")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=9)
        axis.set(title=name, ylabel="" if column else "validation accuracy")
    return figure


def _scale(trials: list[FrozenTrial], name: str) -> tuple:
    """(values to label, their height from 0 to 1, their text) of a parameter in the parallel coordinates."""
    kind = trials[0].distributions[name]
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        last = max(len(kind.choices) - 1, 1)
        return kind.choices, lambda v: kind.choices.index(v) / last, str
    change = np.log if kind.log else np.float64
    low, high = change(kind.low), change(kind.high)
    return (kind.low, kind.high), lambda v: (change(v) - low) / ((high - low) or 1), "{:.3g}".format


def save_study(study: optuna.Study, folder: Path = ROOT / "results") -> Path:
    """Write ``benchmarks/<name>.json`` (every trial, the winner as a recipe) and ``figures/<name>.png``."""
    trials = study.get_trials(deepcopy=False, states=DONE)
    found = {
        "name": study.study_name,
        "profile": profile(),
        **study.user_attrs,
        "best": {"trial": study.best_trial.number, "val_accuracy": study.best_value},
        "recipe": json.loads(json.dumps(as_recipe(study.best_trial), default=vars)),
        "trials": [
            {"number": t.number, "state": t.state.name, "val_accuracy": t.value, "epochs": len(t.intermediate_values)}
            | {"seconds": round(t.duration.total_seconds(), 1), "weights": t.user_attrs["weights"], **t.params}
            for t in trials
        ],
        "hardware": hardware(),
        "versions": versions() | {"optuna": optuna.__version__},
        "date": datetime.date.today().isoformat(),
    }
    path = folder / "benchmarks" / f"{study.study_name}.json"
    write_text(path, json.dumps(found, indent=1) + "\n")
    (folder / "figures").mkdir(exist_ok=True)
    with replacing(folder / "figures" / f"{study.study_name}.png") as temporary:
        plot_study(study).savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    return path


def splits() -> tuple[FashionMNIST, FashionMNIST]:
    """Training and validation images of a search in this profile; both from the published training images."""
    train, val = train_val_split(load("train"))
    return train.subset(pick(smoke=60, cpu=1_000, full=3_000)), val.subset(pick(smoke=60, cpu=500, full=2_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=pick(smoke=3, cpu=15, full=40), help="finished trials wanted")
    parser.add_argument("--storage", help="SQLite file, .log or .journal file, or URL (data/cache/studies.db)")
    parser.add_argument("--study", default=f"search-{profile()}", help="name of the study")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=ROOT / "data" / "cache", help="folder for features (data/cache)")
    parser.add_argument("--save", action="store_true", help="write results/benchmarks and results/figures")
    given = parser.parse_args()
    train, val = splits()
    places = {"storage": given.storage, "cache": given.cache}
    study = search(given.study, trials=given.trials, train=train, val=val, seed=given.seed, **places)
    print("best", _line(study.best_trial))
    print("as a recipe:", pformat(as_recipe(study.best_trial), sort_dicts=False, width=110), sep="\n")
    if given.save:
        print("wrote", save_study(study).name)


if __name__ == "__main__":
    main()
