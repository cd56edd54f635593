"""Search with Optuna for the head, the cut and the training that suit the *validation* images best.

``python -m fmnist_utils.tune --trials 40`` starts a study or goes on with it; the same line in a second terminal takes
its share of the trials. No function here takes test images. Explained in ``notebooks/06_tuning_and_backbones.ipynb``;
needs ``pip install -e ".[tune]"``.
"""

import datetime
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

import optuna
import psutil
from filelock import FileLock
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL

from fmnist_utils import ROOT, pick, profile
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.data import FashionMNIST, fingerprint, load, train_val_split
from fmnist_utils.models import build_model, leaves
from fmnist_utils.recipes import MIRROR
from fmnist_utils.results import default_folder, save_figure, where_and_when, write_record
from fmnist_utils.sources.files import expanded
from fmnist_utils.train import fit
from fmnist_utils.tune.figures import DONE, plot_study

#: Trials drawn at random before the sampler learns from them.
RANDOM_TRIALS = 6
#: A trial of another machine, whose processes cannot be seen from here, counts as lost when it began so long ago.
LOST_AFTER = datetime.timedelta(hours=1)
#: What a recorded trial says besides the values that it drew.
_NO_VALUES = ("number", "state", "val_accuracy", "epochs", "seconds", "weights")


def as_recipe(trial: Trial | FrozenTrial) -> dict:
    """The search space, and what one trial of it means: an entry for ``recipes.RECIPES``.

    A running trial draws its values here; a finished one, such as ``study.best_trial``, gives the recipe that it was,
    in the profile of its search.
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
    place = None if "://" in str(storage) else expanded(storage or ROOT / "data" / "cache" / "studies.db")
    with _quietly():
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
            place_in_line = _place_in_line(study, trial.number)
            if place_in_line > trials:  # another process has taken the last one
                study.tell(trial, state=TrialState.FAIL)
                continue
            study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed + place_in_line)
            _run(study, trial, space, train, val, features, cache, seed)
            if verbose:
                print(line(study.get_trials(deepcopy=False)[trial.number]))
        if verbose and (others := _count(study, TrialState.RUNNING)):
            print(f"{others} more still running in other processes")
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
        with _one_at_a_time(expanded(cache) / "search" if cache else None):
            known[key] = tuple(
                cache_features(model, data, views=views, border=border, folder=cache, verbose=False)
                for data, views in ((train, 2), (val, 1))
            )
    return known[key]


@contextmanager
def _quietly() -> Iterator[None]:
    """Within it Optuna says no more than warnings."""
    earlier = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(earlier)


def _one_at_a_time(path: Path | None):
    if path is None:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.queue")  # the system lets go of it when a process dies


def _backend(path: Path) -> optuna.storages.BaseStorage:
    if path.suffix not in (".log", ".journal"):
        # As a URI, in which ?, #, % and braces of a name stand for themselves.
        file = f"file:{quote(path.absolute().as_posix())}"
        url = URL.create("sqlite", database=file, query={"uri": "true"}).render_as_string()
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    from optuna.storages.journal import JournalFileBackend

    # Optuna's own locks stay for half a minute when a process dies that holds one.
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), FileLock(f"{path}.lock")))


def _check_task(study: optuna.Study, train: FashionMNIST, val: FashionMNIST) -> None:
    """One study compares trials on the same images only."""
    data = {name: fingerprint(part.images)[:16] for name, part in (("train", train), ("val", val))}
    task = {**data, "train_images": len(train), "val_images": len(val), "profile": profile()}
    earlier = study.user_attrs.get("task", task)
    if earlier != task:
        raise ValueError(
            f"Study {study.study_name!r} was made with other images or settings ({earlier}) than these ({task}): use "
            "those, or give the new search another name."
        )
    study.set_user_attr("task", task)


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _place_in_line(study: optuna.Study, number: int) -> int:
    # In one look: a trial that another process finishes between two looks would be in neither.
    trials = study.get_trials(deepcopy=False)
    finished = (*DONE, TrialState.WAITING)
    return sum(t.state in finished or (t.state == TrialState.RUNNING and t.number <= number) for t in trials)


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


def line(trial: FrozenTrial) -> str:
    values = ", ".join(f"{k} {_short(v) if isinstance(v, float) else v}" for k, v in trial.params.items())
    accuracy = f"{trial.value:.2%}" if trial.value is not None else "no accuracy"
    return f"trial {trial.number}: {accuracy}{' (pruned)' * (trial.state == TrialState.PRUNED)}: {values}"


def save_study(study: optuna.Study, folder: Path | None = None) -> Path:
    """Write ``benchmarks/<name>.json`` (every trial, the winner as a recipe) and ``figures/<name>.png``.

    ``folder`` is ``fmnist_utils.results.default_folder()`` unless given.
    """
    folder = folder or default_folder()
    trials = study.get_trials(deepcopy=False, states=DONE)
    record = {
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
        **where_and_when("optuna"),
    }
    save_figure(plot_study(study), study.study_name, folder)
    return write_record(folder / "benchmarks" / f"{study.study_name}.json", record)


def as_study(trials: list[dict]) -> optuna.Study:
    """The ``trials`` of a file that :func:`save_study` wrote, or some of them, as a study in memory.

    Each is a row with ``state``, ``val_accuracy``, ``epochs`` and the values that :func:`as_recipe` asks for. Used
    in notebooks/06_tuning_and_backbones.ipynb.
    """
    with _quietly():
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        for row in trials:
            study.enqueue_trial({key: value for key, value in row.items() if key not in _NO_VALUES})
            trial = study.ask()
            as_recipe(trial)
            if row["state"] == "PRUNED":
                trial.report(row["val_accuracy"], row["epochs"])
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, row["val_accuracy"])
    return study


def splits() -> tuple[FashionMNIST, FashionMNIST]:
    """Training and validation images of a search in this profile; both from the published training images."""
    train, val = train_val_split(load("train"))
    return train.subset(pick(smoke=60, cpu=1_000, full=3_000)), val.subset(pick(smoke=60, cpu=500, full=2_000))
