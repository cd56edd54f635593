"""`fmnist_utils.recipes`: each one on paper, and a tiny one run against numbers from single runs."""

import copy
import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fmnist_utils import ROOT, data, recipes
from fmnist_utils.models import build_model, set_trainable
from fmnist_utils.preprocess import Augment
from fmnist_utils.recipes import __main__ as command
from fmnist_utils.recipes import runner
from fmnist_utils.results import default_folder, load_predictions
from fmnist_utils.settings import Settings

TINY_CNN = {
    "model": {"name": "small_cnn", "weights": None, "image_size": 12},
    "phases": [{"trainable": "all", "epochs": 2, "lr": 4e-3, "batch_size": 32}],
    "images": 60,
    "mirror": True,
}
TINY_VGG = {
    "model": {"name": "vgg16", "cut_after": "block1", "head": "linear", "image_size": 16},
    "phases": [{"trainable": "head", "epochs": 1, "batch_size": 32}],
    "images": 60,
}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_built_and_trained_on_paper(name):
    recipe = recipes.RECIPES[name]
    assert set(recipe) <= {"model", "phases", "images", "views", "mirror"}
    settings = {key: recipes.of_profile(value) for key, value in recipe["model"].items()}
    with torch.device("meta"):  # shapes without values
        model = build_model(**settings | {"weights": None})
    counts = []
    for phase in recipe["phases"]:
        arguments = {key: recipes.of_profile(value) for key, value in phase.items()}
        set_trainable(model, arguments.pop("trainable"))
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        arguments.pop("compile", None)
        Settings(**arguments)  # refuses unknown names and values
    assert counts == sorted(counts)
    augmented = model.preprocess.augment is not None
    assert augmented or recipe.get("views", 1) == 1
    # Features cannot be mirrored, so a recipe that does has to train on images.
    free = not any(not p.requires_grad for p in model.backbone.parameters())
    assert not recipe.get("mirror") or free or augmented and recipe.get("views", 1) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_runs_are_runs_of_their_recipes(path, monkeypatch):
    run = json.loads(path.read_text(encoding="utf-8"))
    monkeypatch.setenv("FMNIST_PROFILE", run["profile"])
    name, *changes = re.split("-(with(?:out)?)-", re.sub("-(random-weights|distilled)$", "", run["recipe"]))
    recipe = recipes.RECIPES[name]
    for kind, change in zip(changes[::2], changes[1::2], strict=True):
        recipe = {"with": recipes.add, "without": recipes.leave_out}[kind](recipe, change)
    settings = {key: recipes.of_profile(value) for key, value in recipe["model"].items()}
    with torch.device("meta"):
        model = build_model(**settings | {"weights": None})
    assert (run["backbone"], run["cut_after"]) == (model.config["name"], model.config["cut_after"])
    assert run["image_size"] == model.config["image_size"]
    assert run["train_images"] == recipes.of_profile(recipe.get("images", recipes.IMAGES))
    assert run["epochs"] == sum(recipes.of_profile(phase["epochs"]) for phase in recipe["phases"])
    set_trainable(model, recipe["phases"][-1]["trainable"])
    parameters = list(model.parameters())
    learning = sum(p.numel() for p in parameters if p.requires_grad)
    assert run["parameters"] == {"total": sum(p.numel() for p in parameters), "trainable": learning}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a recipe on few images, with everything it writes below the test's own folder."""
    some = data.load("test").subset(500)
    splits = {"train": some.select(range(300)), "test": some.select(range(300, 500))}
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(runner, "load", splits.get)
    monkeypatch.setattr(runner, "train_val_split", functools.partial(data.train_val_split, val=200))
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "default_folder", lambda: tmp_path / "results")
    monkeypatch.setitem(recipes.RECIPES, "tiny-cnn", TINY_CNN)
    monkeypatch.setitem(recipes.RECIPES, "tiny-vgg", TINY_VGG)

    def start(name, **settings):
        path = recipes.run(name, verbose=False, **settings)
        result = json.loads(path.read_text(encoding="utf-8"))
        predictions = {split: load_predictions(path.stem, split, folder=path.parent) for split in ("val", "test")}
        return path.name, result, predictions

    start.test = splits["test"]
    start.folder = tmp_path
    return start


def test_several_seeds_make_means_and_deviations_of_the_single_runs(run):
    single = [run("tiny-cnn", seeds=(seed,))[1]["metrics"] for seed in (0, 1)]
    name, both, predictions = run("tiny-cnn", seeds=(0, 1))
    assert name == "tiny-cnn-smoke.json" and both["seeds"] == [0, 1]
    assert set(both["metrics"]) == {key + end for key in single[0] for end in ("", "_sd")}
    for key in single[0]:
        values = [metrics[key] for metrics in single]
        # The files hold five decimals.
        assert both["metrics"][key] == pytest.approx(np.mean(values), abs=1.1e-5)
        assert both["metrics"][f"{key}_sd"] == pytest.approx(np.std(values, ddof=1), abs=1.1e-5)
        assert both["per_seed"][key] == values
    # Predictions and history are the first seed's.
    accuracy = (predictions["test"].argmax(1) == run.test.labels.numpy()).mean()
    assert accuracy == pytest.approx(both["per_seed"]["test_accuracy"][0], abs=1.1 / 200)
    assert predictions["test"].shape == predictions["val"].shape == (200, 10)
    assert len(both["history"]) == both["epochs"] == 2 and both["history"][0]["phase"] == 1
    assert both["train_images"] == 60 and both["mirror"] and both["engine"] == "no cache"
    assert both["command"] == "FMNIST_PROFILE=smoke python -m fmnist_utils.recipes tiny-cnn --seeds 0 1"


def test_random_weights_are_named_in_every_file(run):
    name, result, _ = run("tiny-vgg", save=True)
    assert name == "tiny-vgg-smoke.json" and result["weights"].startswith("imagenet:")
    assert result["engine"] == "eager"  # trained on cached features
    pretrained = (run.folder / "data" / "models" / "tiny-vgg.json").read_bytes()
    assert json.loads(pretrained)["mirror"] is False

    name, result, _ = run("tiny-vgg", random_weights=True, save=True)
    assert name == "tiny-vgg-random-weights-smoke.json" and result["recipe"] == "tiny-vgg-random-weights"
    assert result["weights"] == "none" and result["command"].endswith("tiny-vgg --random-weights")
    assert (run.folder / "data" / "models" / "tiny-vgg.json").read_bytes() == pretrained


@pytest.mark.parametrize("ingredient", recipes.INGREDIENTS)
def test_leaving_an_ingredient_out_changes_nothing_else(ingredient):
    full = recipes.RECIPES["wide-resnet-best"]
    before, after = copy.deepcopy(full), recipes.leave_out(full, ingredient)
    assert full == before
    kept = {"flip": 0.5, "shift": 4, "erasing": 0.5}
    kept |= {key: full["phases"][0][key] for key in ("label_smoothing", "ema")} | {"mirror": True}
    augment, phase = after["model"]["augment"], after["phases"][0]
    assert augment == Augment(**{key: kept[key] for key in ("flip", "shift", "erasing") if key != ingredient})
    assert phase == {key: value for key, value in full["phases"][0].items() if key != ingredient}
    assert after["mirror"] == (ingredient != "mirror")
    assert after["model"] | {"augment": None} == full["model"] | {"augment": None}
    with pytest.raises(ValueError, match=f"has no '{ingredient}' to leave out"):
        recipes.leave_out(after, ingredient)


def test_what_was_left_out_is_named_in_every_file(run):
    name, result, predictions = run("tiny-cnn", without=("mirror",))
    assert name == "tiny-cnn-without-mirror-smoke.json" and result["recipe"] == "tiny-cnn-without-mirror"
    assert result["command"].endswith("tiny-cnn --without mirror") and not result["mirror"]
    _, mirrored, others = run("tiny-cnn")
    assert result["history"][0]["train_loss"] == mirrored["history"][0]["train_loss"]
    assert not np.allclose(predictions["test"], others["test"])


@pytest.mark.parametrize("addition", recipes.ADDITIONS)
def test_an_addition_changes_what_it_says_and_nothing_else(addition, monkeypatch):
    monkeypatch.setenv("FMNIST_PROFILE", "full")
    plain = recipes.RECIPES["wide-resnet-16-4"]
    before, after = copy.deepcopy(plain), recipes.add(plain, addition)
    assert plain == before
    expected = {
        "mixup": {"mix": "mixup"},
        "cutmix": {"mix": "cutmix"},
        "mixup-or-cutmix": {"mix": "mixup-or-cutmix"},
        "longer": {"epochs": 160},
        "more-decay": {"weight_decay": 1e-3},
        "larger-batch": {"batch_size": 500, "lr": 0.4},
        "all-images": {"choose": False},
    }[addition]
    (phase,), (old,) = after["phases"], plain["phases"]
    found = {key: recipes.of_profile(value) for key, value in phase.items()}
    assert found == {key: recipes.of_profile(value) for key, value in old.items()} | expected
    assert after["model"] == plain["model"] and after["mirror"] == plain["mirror"]
    assert recipes.of_profile(after["images"]) == (60_000 if addition == "all-images" else 55_000)
    assert after.get("validation", True) == (addition != "all-images")
    phase = found | {"epochs": 1}
    for key in ("trainable", "compile", "choose"):
        phase.pop(key, None)
    Settings(**phase)  # refuses unknown names and values


def test_what_was_added_is_named_and_trained_with(run):
    name, result, _ = run("tiny-cnn", added=("mixup", "more-decay"))
    assert name == "tiny-cnn-with-mixup-with-more-decay-smoke.json" and result["recipe"] == name[: -len("-smoke.json")]
    assert result["command"].endswith("recipes tiny-cnn --with mixup more-decay")
    assert result["history"] != run("tiny-cnn", added=("mixup",))[1]["history"]


def test_a_run_on_all_images_holds_nothing_out_and_keeps_the_last_step(run, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny-cnn", TINY_CNN | {"images": 300})
    monkeypatch.setattr(runner, "load_predictions", None)
    kept, real = [], runner.fit_phases

    def watched(model, train, val, phases, **settings):
        ends = []
        watching = [phase | {"on_epoch": lambda _: ends.append(copy.deepcopy(model.state_dict()))} for phase in phases]
        history = real(model, train, val, watching, **settings)
        kept.append((train, phases, all(torch.equal(ends[-1][k], v) for k, v in model.state_dict().items())))
        return history

    monkeypatch.setattr(runner, "fit_phases", watched)
    path = recipes.run("tiny-cnn", added=("all-images",), verbose=False)
    result = json.loads(path.read_text(encoding="utf-8"))
    ((train, (phase,), last),) = kept
    assert len(train) == result["train_images"] == 64 and phase["choose"] is False and last
    assert "none" in result["validation"] and "val_accuracy" not in result["metrics"]
    assert not any("val" in key for key in result["history"][0])
    with np.load(path.parent / "predictions" / f"{path.stem}.npz") as arrays:
        assert arrays.files == ["test"]


def test_a_student_learns_its_teachers_mean(run, monkeypatch):
    for seed in (0, 1):
        monkeypatch.setitem(recipes.RECIPES, f"teacher-{seed}", TINY_CNN)
        run(f"teacher-{seed}", seeds=(seed,), predict_train=True)
    names = ["teacher-0-smoke", "teacher-1-smoke"]
    taught, real = [], runner.fit_phases
    monkeypatch.setattr(
        runner, "fit_phases", lambda model, train, *a, **k: taught.append(train) or real(model, train, *a, **k)
    )
    name, result, _ = run("tiny-cnn", teachers=names)
    assert name == "tiny-cnn-distilled-smoke.json" and result["teachers"] == names
    assert result["command"].endswith("--teachers teacher-0-smoke teacher-1-smoke")
    arrays = [np.load(run.folder / "results" / "predictions" / f"{one}.npz")["train"] for one in names]
    expected = np.mean([np.exp(one.astype(np.float64)) for one in arrays], 0)
    np.testing.assert_allclose(taught[0].labels.numpy(), expected, atol=2e-3)  # logarithms in float16
    assert 0 <= result["metrics"]["train_accuracy"] <= 1
    with pytest.raises(ValueError, match="teacher-0-smoke learned from other images than these 64"):
        run("tiny-cnn", teachers=names[:1], added=("all-images",))


def test_settings_of_a_phase_follow_the_profile(run, monkeypatch):
    phase = TINY_CNN["phases"][0] | {"epochs": recipes.ByProfile(1, 5, 9)}
    monkeypatch.setitem(recipes.RECIPES, "tiny-cnn", TINY_CNN | {"phases": [phase]})
    assert run("tiny-cnn")[1]["epochs"] == 1


def test_a_head_of_your_own_is_no_value_by_profile(run, monkeypatch):
    head = (0, 2, (16, 12), True)
    monkeypatch.setitem(recipes.RECIPES, "tiny-cnn", TINY_CNN | {"model": TINY_CNN["model"] | {"head": head}})
    _, result, _ = run("tiny-cnn", save=True)
    card = json.loads((run.folder / "data" / "models" / "tiny-cnn.json").read_text(encoding="utf-8"))
    assert card["model"]["head"] == [0, 2, [16, 12], True]
    scratch = sum(p.numel() for p in build_model("small_cnn", weights=None).backbone.parameters())
    width = 128 * 2 * 2  # of the last convolution's filters; normalised, then 16, 12 and 10 units
    own = 2 * width + (width + 1) * 16 + (16 + 1) * 12 + (12 + 1) * 10
    assert result["parameters"]["total"] == scratch + own


def test_unknown_recipe_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="Did you mean 'vgg16-frozen'"):
        recipes.run("vgg16-frosen")


@pytest.mark.parametrize("place", ["results", "cache", "checkpoint"])
def test_a_folder_that_cannot_be_written_to_is_named_before_training(place, run, monkeypatch, tmp_path):
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(runner, "build_model", None)  # what a run would call first
    with pytest.raises(OSError, match=r"Nothing can be written to .*a file/below \(Not a directory\)"):
        run("tiny-cnn", **{place: tmp_path / "a file" / "below"})


def test_results_go_to_the_folder_that_is_given(run, tmp_path):
    run("tiny-cnn", results=tmp_path / "mine")
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {"tiny-cnn-smoke.json", "predictions"}
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "folder"), [([], "runs"), (["--record"], "results"), (["--results", "elsewhere"], "elsewhere")]
)
def test_command_records_on_request_only(monkeypatch, capsys, options, folder):
    def run(name, **settings):
        assert "record" not in settings
        return Path(settings["results"] or default_folder()) / f"{name}-smoke.json"

    monkeypatch.setenv("FMNIST_RECORD", "0")  # so that it is put back
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(sys, "argv", ["recipes", "small-cnn", *options])
    command.main()
    assert capsys.readouterr().out == f"wrote {folder}/small-cnn-smoke.json\n"
