"""`fmnist_utils.train` against scikit-learn, closed formulas and itself, interrupted."""

import copy
import math
import types

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from fmnist_utils import train
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import FashionMNIST, make_loader
from fmnist_utils.models import build_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.scale.engines import find_compiler
from fmnist_utils.settings import MIXES, SCHEDULES, make_optimizer, make_schedule
from fmnist_utils.train import fit, fit_phases, validate


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit for bit the same numbers are promised for a CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="module")
def small_vgg(small_vgg):
    """The shared model at 16 px, a quarter of the work."""
    return lambda **changes: small_vgg(**{"image_size": 16} | changes)


def tempered(model):
    """The model with logits so small that no probability comes near 0, where scikit-learn cuts the loss off."""
    with torch.no_grad():
        model.head[-1].weight *= 0.01
    return model


def quick_fit(model, train_data, val_data, **changes) -> pd.DataFrame:
    settings = {"epochs": 2, "batch_size": 64, "lr": 5e-3, "mixed_precision": "no", "progress": False}
    return fit(model, train_data, val_data, **settings | changes)


def features_of(model, *datasets, **settings) -> list[CachedFeatures]:
    return [cache_features(model, dataset, device="cpu", verbose=False, **settings) for dataset in datasets]


@torch.no_grad()
def probabilities_of(model, dataset: FashionMNIST) -> np.ndarray:
    return model.eval()(dataset.images).double().softmax(1).numpy()


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def without_time(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="seconds")


# ---------------------------------------------------------------------------------------------------------- metrics


def test_evaluate_weighs_samples_not_batches(small_vgg, tiny):
    model = tempered(small_vgg(head=(0, 2, (16,), False))).train()  # evaluate must switch dropout off itself
    assert len(tiny) % 64  # the last batch has two images
    loss, accuracy = validate(model, make_loader(tiny, 64))
    expected = probabilities_of(model, tiny)
    assert loss == pytest.approx(log_loss(tiny.labels, expected, labels=range(10)), rel=1e-4)
    assert accuracy == pytest.approx(accuracy_score(tiny.labels, expected.argmax(1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_history_of_an_epoch_that_changes_nothing_is_scikit_learns(small_vgg, tiny, tiny_val, smoothing):
    # A learning rate of 0 and neither dropout nor batch normalisation: every batch sees the initial weights.
    model = tempered(small_vgg(head=(0, 2, (16,), False), dropout=0.0))
    p, p_val = probabilities_of(model, tiny), probabilities_of(model, tiny_val)
    history = quick_fit(model, tiny, tiny_val, epochs=1, lr=0.0, label_smoothing=smoothing)
    # Szegedy et al. (2016): the target is 1 - smoothing for the label plus smoothing/10 for each of the ten classes.
    targets = np.eye(10)[tiny.labels] * (1 - smoothing) + smoothing / 10
    row = history.loc[1]
    assert row.train_loss == pytest.approx(-(targets * np.log(p)).sum(1).mean(), rel=1e-4)
    assert row.train_accuracy == pytest.approx(accuracy_score(tiny.labels, p.argmax(1)))
    assert row.val_loss == pytest.approx(log_loss(tiny_val.labels, p_val, labels=range(10)), rel=1e-4)
    assert row.val_accuracy == pytest.approx(accuracy_score(tiny_val.labels, p_val.argmax(1)))


def test_model_returned_has_the_best_validation_weights(small_vgg, tiny):
    # Validation labels that are all wrong: the better the training, the lower this accuracy.
    wrong = FashionMNIST(tiny.images, (tiny.labels + 1) % 10)
    model = small_vgg()
    history = quick_fit(model, tiny, wrong, epochs=6)
    best = history.val_accuracy.max()
    assert history.val_accuracy.iloc[-1] < best
    assert accuracy_score(wrong.labels, probabilities_of(model, wrong).argmax(1)) == pytest.approx(best)
    assert not model.training
    assert history.index.name == "epoch" and list(history.index) == [1, 2, 3, 4, 5, 6]
    assert list(history) == ["lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_patience_epochs_without_progress(small_vgg, tiny, tiny_val, patience):
    model = small_vgg(head=(0, 2, (), False))
    history = quick_fit(model, tiny, tiny_val, epochs=8, lr=0.0, patience=patience)
    assert len(history) == 1 + patience


def test_a_batch_can_be_learnt_by_heart(small_vgg, tiny):
    batch = tiny.subset(32)
    model = small_vgg(cut_after="block2", dropout=0.0)
    quick_fit(model, batch, batch, epochs=40, batch_size=32, lr=1e-2)
    assert accuracy_score(batch.labels, probabilities_of(model, batch).argmax(1)) == 1.0


def test_loss_that_is_no_number_stops_the_training(small_vgg, tiny, tiny_val, tmp_path):
    with pytest.raises(FloatingPointError, match="lower lr"):
        quick_fit(small_vgg(), tiny, tiny_val, optimizer="sgd", lr=1e30, checkpoint=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- what is and isn't trained


@pytest.mark.parametrize("cached", [False, True], ids=["images", "features"])
@pytest.mark.parametrize(
    ("trainable", "trained"), [("head", ("head",)), (3, ("head", "backbone.block1.2"))], ids=["head", "last 3 layers"]
)
def test_training_changes_the_trainable_weights_and_no_others(small_vgg, tiny, tiny_val, cached, trainable, trained):
    model = small_vgg(trainable=trainable)
    before = state_of(model)
    data = features_of(model, tiny, tiny_val) if cached else (tiny, tiny_val)
    quick_fit(model, *data, epochs=1)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(trained)}


@pytest.mark.parametrize("trainable", ["head", 3], ids=["head", "last 3 layers"])
def test_training_on_features_equals_training_on_images(small_vgg, tiny, tiny_val, trainable):
    on_images, on_features = small_vgg(trainable=trainable), small_vgg(trainable=trainable)
    # SGD, because Adam makes steps of the same length from gradients however small, and so of rounding errors too.
    settings = {"optimizer": "sgd", "lr": 1e-2}
    expected = quick_fit(on_images, tiny, tiny_val, **settings)
    found = quick_fit(on_features, *features_of(on_features, tiny, tiny_val), **settings)
    # Dropout and order are the same, because the seed is; the features were rounded to float16, 2**-11 of their value.
    losses, accuracies = ["train_loss", "val_loss", "lr"], ["train_accuracy", "val_accuracy"]
    np.testing.assert_allclose(found[losses], expected[losses], rtol=1e-3)
    np.testing.assert_allclose(found[accuracies], expected[accuracies], atol=1.01 / len(tiny_val))
    for name, parameter in on_images.named_parameters():
        torch.testing.assert_close(on_features.get_parameter(name), parameter, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        probabilities_of(on_features, tiny_val), probabilities_of(on_images, tiny_val), atol=5e-3
    )


def test_training_on_features_of_an_earlier_border_is_the_same(small_vgg, tiny, tiny_val):
    on_images, on_features = small_vgg(), small_vgg()
    border = len(small_vgg(trainable=3).split()[0])
    assert border == 3 < len(on_features.split()[0])
    settings = {"optimizer": "sgd", "lr": 1e-2}
    expected = quick_fit(on_images, tiny, tiny_val, **settings)
    found = quick_fit(on_features, *features_of(on_features, tiny, tiny_val, border=border), **settings)
    np.testing.assert_allclose(found[["train_loss", "val_loss"]], expected[["train_loss", "val_loss"]], rtol=1e-3)
    for name, parameter in on_images.named_parameters():
        torch.testing.assert_close(on_features.get_parameter(name), parameter, rtol=1e-3, atol=1e-3)


def test_features_of_different_borders_are_refused(small_vgg, tiny, tiny_val):
    model = small_vgg()
    (early,), (late,) = features_of(model, tiny, border=3), features_of(model, tiny_val)
    with pytest.raises(ValueError, match="cached at border 3"):
        quick_fit(model, early, late)


def test_validation_sees_the_plain_view_only(small_vgg, tiny, tiny_val):
    model = small_vgg(augment=Augment(rotation=40))
    train_data, val_data = features_of(model, tiny, tiny_val, views=2)
    history = quick_fit(model, train_data, val_data, epochs=1)
    expected = probabilities_of(model, tiny_val)
    assert history.val_accuracy[1] == pytest.approx(accuracy_score(tiny_val.labels, expected.argmax(1)))
    assert history.val_loss[1] == pytest.approx(log_loss(tiny_val.labels, expected, labels=range(10)), rel=5e-3)


def test_features_of_another_model_are_refused(small_vgg, tiny, tiny_val):
    small, large = small_vgg(), small_vgg(image_size=20)
    (good,), (bad,) = features_of(small, tiny), features_of(large, tiny_val)
    with pytest.raises(ValueError, match="features were computed with other"):
        quick_fit(small, good, bad)
    with pytest.raises(ValueError, match="features were computed with other"):
        quick_fit(large, good, bad)
    with pytest.raises(ValueError, match="both be images or both"):
        quick_fit(small, good, tiny_val)


# ------------------------------------------------------------------------------------------------ seeds, checkpoints


@pytest.mark.parametrize("cached", [False, True], ids=["images", "features"])
def test_seed_decides_everything(small_vgg, tiny, tiny_val, cached):
    def run(seed: int, disturbance: int):
        torch.manual_seed(disturbance)
        model = small_vgg(augment=Augment(flip=0.5))
        data = features_of(model, tiny, tiny_val, views=2) if cached else (tiny, tiny_val)
        return without_time(quick_fit(model, *data, seed=seed)), state_of(model)

    (history, state), (again, same_state), (other, _) = run(1, 5), run(1, 6), run(2, 5)
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    assert_same_state(state, same_state)
    assert not history.train_loss.equals(other.train_loss)


class Interrupted(Exception):
    pass


def interrupting(dataset, at_batch: int):
    """The same data set, but asking it for its batch number `at_batch` (counted from 1) fails, as Ctrl+C would."""

    class Interrupting(type(dataset)):
        batches = 0

        def __getitems__(self, indices):
            self.batches += 1
            if self.batches == at_batch:
                raise Interrupted
            return super().__getitems__(indices)

    copy = Interrupting.__new__(Interrupting)
    copy.__dict__.update(dataset.__dict__)
    return copy


@pytest.mark.parametrize("at_batch", [5, 8], ids=["in epoch 2", "in epoch 3"])
@pytest.mark.parametrize("schedule", ["one-cycle", "exponential"])
@pytest.mark.parametrize("cached", [False, True], ids=["images", "features"])
def test_interrupted_training_goes_on_as_if_nothing_had_happened(
    small_vgg, tiny, tiny_val, tmp_path, cached, schedule, at_batch
):
    def start():
        model = small_vgg(augment=Augment(flip=0.5))
        data = features_of(model, tiny, tiny_val, views=2) if cached else (tiny, tiny_val)
        return model, *data

    settings = {"epochs": 4, "schedule": schedule, "checkpoint": tmp_path / "model"}
    whole, train_data, val_data = start()
    expected = quick_fit(whole, train_data, val_data, **settings | {"checkpoint": tmp_path / "whole"})

    model, train_data, val_data = start()
    with pytest.raises(Interrupted):
        quick_fit(model, interrupting(train_data, at_batch), val_data, **settings)
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.resume.pt"]

    model, train_data, val_data = start()
    torch.manual_seed(99)
    found = quick_fit(model, train_data, val_data, **settings)
    pd.testing.assert_frame_equal(without_time(found), without_time(expected), check_exact=True)
    assert_same_state(state_of(model), state_of(whole))
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.json", "model.safetensors"]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "whole.safetensors")[name])


@pytest.mark.parametrize("setting", [{"ema": 0.8}, {"mix": "cutmix"}, {"ema": 0.8, "trainable": 3}], ids=str)
def test_averages_and_mixed_images_survive_an_interruption(small_vgg, tiny, tiny_val, tmp_path, setting):
    trainable = setting.get("trainable", "head")
    settings = {"epochs": 3, "checkpoint": tmp_path / "model"} | {k: v for k, v in setting.items() if k != "trainable"}
    whole = small_vgg(trainable=trainable)
    expected = quick_fit(whole, tiny, tiny_val, **settings | {"checkpoint": tmp_path / "whole"})
    with pytest.raises(Interrupted):
        quick_fit(small_vgg(trainable=trainable), interrupting(tiny, 5), tiny_val, **settings)
    model = small_vgg(trainable=trainable)
    found = quick_fit(model, tiny, tiny_val, **settings)
    pd.testing.assert_frame_equal(without_time(found), without_time(expected), check_exact=True)
    assert_same_state(state_of(model), state_of(whole))


def no_training(*arguments, **settings):
    raise AssertionError("trained again")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_finished_training_is_loaded_and_not_repeated(small_vgg, tiny, tiny_val, tmp_path, monkeypatch, precision):
    settings = {"checkpoint": tmp_path / "model", "mixed_precision": precision, "epochs": 1}
    first, second = small_vgg(), small_vgg().train()
    history = quick_fit(first, tiny, tiny_val, **settings)
    monkeypatch.setattr(train, "train_one_epoch", no_training)
    pd.testing.assert_frame_equal(quick_fit(second, tiny, tiny_val, **settings), history, check_exact=True)
    assert_same_state(state_of(first), state_of(second))
    assert not second.training
    np.testing.assert_array_equal(probabilities_of(second, tiny_val), probabilities_of(first, tiny_val))
    with pytest.raises(ValueError, match=r"model is a finished model of another run \(seed=0, not 1\)"):
        quick_fit(small_vgg(), tiny, tiny_val, **settings | {"seed": 1})
    with pytest.raises(ValueError, match="epochs=1, not 5"):  # which would have lost it
        quick_fit(small_vgg(), tiny, tiny_val, **settings | {"epochs": 5})
    assert_same_state(state_of(load_model(tmp_path / "model")), state_of(first))


def test_a_cell_run_again_in_the_same_process_goes_on_and_then_loads(small_vgg, tiny, tiny_val, tmp_path, monkeypatch):
    settings = {"epochs": 4, "checkpoint": tmp_path / "model"}
    whole = quick_fit(small_vgg(), tiny, tiny_val, epochs=4)
    model, computed = small_vgg(), []
    with pytest.raises(Interrupted):
        quick_fit(model, interrupting(tiny, 5), tiny_val, **settings)
    history = quick_fit(model, tiny, tiny_val, **settings, on_epoch=lambda row: computed.append(row["epoch"]))
    assert computed and computed[0] > 1
    pd.testing.assert_frame_equal(without_time(history), without_time(whole), check_exact=True)
    monkeypatch.setattr(train, "train_one_epoch", no_training)
    for _ in range(2):
        again = quick_fit(model, tiny, tiny_val, **settings)
        pd.testing.assert_frame_equal(again, history, check_exact=True)
    with torch.no_grad():
        model.head[-1].bias += 1  # by hand: no longer what fit() has left
    with pytest.raises(ValueError, match="starting weights"):
        quick_fit(model, tiny, tiny_val, **settings)


def test_phases_run_again_in_the_same_process_are_loaded(small_vgg, tiny, tiny_val, tmp_path, monkeypatch):
    model = small_vgg()
    history = fit_phases(model, tiny, tiny_val, TWO_PHASES, checkpoint=tmp_path / "model", progress=False)
    expected = state_of(model)
    monkeypatch.setattr(train, "train_one_epoch", no_training)
    again = fit_phases(model, tiny, tiny_val, TWO_PHASES, checkpoint=tmp_path / "model", progress=False)
    pd.testing.assert_frame_equal(again, history, check_exact=True)
    assert_same_state(state_of(model), expected)


@pytest.mark.parametrize("cached", [False, True], ids=["images", "features"])
def test_finished_training_on_other_labels_is_not_taken_for_this_one(small_vgg, tiny, tiny_val, tmp_path, cached):
    corrected = FashionMNIST(tiny.images, (tiny.labels + 1) % 10)
    model = small_vgg()
    quick_fit(
        model,
        *(features_of(model, tiny, tiny_val) if cached else (tiny, tiny_val)),
        epochs=1,
        checkpoint=tmp_path / "model",
    )
    model = small_vgg()
    inputs = features_of(model, corrected, tiny_val) if cached else (corrected, tiny_val)
    with pytest.raises(ValueError, match="other images, labels, model or starting weights"):
        quick_fit(model, *inputs, epochs=1, checkpoint=tmp_path / "model")


@pytest.mark.parametrize("setting", [{"lr": 1e-3}, {"epochs": 5}, {"seed": 1}, {"schedule": "constant"}], ids=str)
def test_resuming_with_other_settings_is_refused(small_vgg, tiny, tiny_val, tmp_path, setting):
    settings = {"epochs": 3, "checkpoint": tmp_path / "model"}
    with pytest.raises(Interrupted):
        quick_fit(small_vgg(), interrupting(tiny, 5), tiny_val, **settings)
    with pytest.raises(ValueError, match="other settings"):
        quick_fit(small_vgg(), tiny, tiny_val, **settings | setting)


def test_resuming_another_model_is_refused(small_vgg, tiny, tiny_val, tmp_path):
    settings = {"epochs": 3, "checkpoint": tmp_path / "model"}
    with pytest.raises(Interrupted):
        quick_fit(small_vgg(), interrupting(tiny, 5), tiny_val, **settings)
    with pytest.raises(ValueError, match="other settings"):
        quick_fit(small_vgg(image_size=20), tiny, tiny_val, **settings)


def test_checkpoint_of_a_finished_run_is_the_model(small_vgg, tiny, tiny_val, tmp_path):
    model = small_vgg()
    history = quick_fit(model, tiny, tiny_val, checkpoint=tmp_path / "deep" / "model")
    loaded = load_model(tmp_path / "deep" / "model")
    # fit changes the memory layout of convolutions, in which the same sums are rounded differently.
    np.testing.assert_allclose(probabilities_of(loaded, tiny_val), probabilities_of(model, tiny_val), atol=1e-5)
    accuracy = accuracy_score(tiny_val.labels, probabilities_of(loaded, tiny_val).argmax(1))
    assert accuracy == pytest.approx(history.val_accuracy.max())


# ---------------------------------------------------------------------------------------- optimizers and schedules

LR, STEPS, PER_EPOCH, DECAY = 0.1, 30, 5, 0.8


def one_cycle(step: int) -> float:
    """Smith (2018) as PyTorch has it: from lr/25 up for 30% of the steps and down to lr/250,000, along cosines."""
    total, peak = STEPS, 0.3 * (STEPS + 1) - 1
    start, end, at = (LR / 25, LR, step / peak) if step <= peak else (LR, LR / 25e4, (step - peak) / (total - peak))
    return end + (start - end) * (1 + math.cos(math.pi * at)) / 2


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("one-cycle", one_cycle),
        ("exponential", lambda step: LR * DECAY ** (step / PER_EPOCH)),
        ("constant", lambda step: LR),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedules_follow_their_formulas(name, formula):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make_schedule(optimizer, name, STEPS, PER_EPOCH, DECAY)
    found = [scheduler.get_last_lr()[0]]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    np.testing.assert_allclose(found, [formula(step) for step in range(STEPS + 1)], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedules_keep_the_ratio_of_the_two_rates(name):
    slow, fast = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = make_optimizer(nn.Sequential(slow, fast), "adamw", 0.1, 0.5, slow, 0.004)
    rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == 4
    scheduler = make_schedule(optimizer, name, STEPS, PER_EPOCH, DECAY)
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        for kind in ("weight", "bias"):
            slow_rate, fast_rate = (rates[id(getattr(layer, kind))]["lr"] for layer in (slow, fast))
            assert fast_rate == pytest.approx(25 * slow_rate, rel=1e-9)
        assert scheduler.get_last_lr()[0] == rates[id(fast.weight)]["lr"]  # what the history shows


def test_history_shows_the_learning_rate_at_the_end_of_each_epoch(small_vgg, tiny, tiny_val):
    model = small_vgg()
    data = features_of(model, tiny, tiny_val)
    history = quick_fit(model, *data, epochs=3, schedule="exponential", lr=0.01, decay=0.5)
    np.testing.assert_allclose(history.lr, [0.005, 0.0025, 0.00125], rtol=1e-9)


# One step with zero gradients, so that weight decay is all that happens (lr 0.1, weight decay 0.5).
@pytest.mark.parametrize(
    ("name", "kind", "factor"),
    [
        ("adamw", torch.optim.AdamW, 1 - 0.1 * 0.5),  # decoupled (Loshchilov & Hutter, 2019)
        ("sgd", torch.optim.SGD, 1 - 0.1 * 0.5 * 1.9),  # as part of the gradient, with Nesterov momentum 0.9
        ("adam", torch.optim.Adam, None),  # as part of the gradient, which Adam scales to a step of lr
    ],
)
def test_optimizers_decay_matrices_but_neither_biases_nor_norms(name, kind, factor):
    layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    layers[2].requires_grad_(False)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.fill_(2.0)
    optimizer = make_optimizer(layers, name, lr=0.1, weight_decay=0.5)
    assert type(optimizer) is kind
    for parameter in layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = torch.full((3, 4), 2.0 * factor if factor else 2.0 - 0.1)
    torch.testing.assert_close(layers[0].weight.detach(), decayed)
    for parameter in (layers[0].bias, *layers[1].parameters(), *layers[2].parameters()):
        assert (parameter == 2.0).all()


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [({"optimizer": "adamm"}, "adam"), ({"schedule": "one_cycle"}, "one-cycle"), ({"mix": "cutmx"}, "cutmix")],
    ids=str,
)
def test_unknown_names_are_refused_with_the_nearest_known_one(small_vgg, tiny, tiny_val, setting, nearest):
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
        quick_fit(small_vgg(), tiny, tiny_val, **setting)


def test_backbone_and_head_each_take_a_step_of_their_own_rate(small_vgg, tiny, tiny_val):
    batch, lr, backbone_lr = tiny.subset(32), 0.01, 0.002
    model = small_vgg(trainable=3, dropout=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reference = small_vgg(trainable=3, dropout=0.0).train()
    loss = nn.functional.cross_entropy(reference(batch.images), batch.labels)
    gradients = dict(zip(free, torch.autograd.grad(loss, [reference.get_parameter(n) for n in free]), strict=True))
    settings = {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "epochs": 1, "batch_size": 32}
    quick_fit(model, batch, tiny_val, lr=lr, backbone_lr=backbone_lr, **settings)
    for name, gradient in gradients.items():
        # The first step with Nesterov momentum 0.9 goes along 1.9 gradients.
        expected = -1.9 * (backbone_lr if name.startswith("backbone") else lr) * gradient
        found = model.get_parameter(name).detach() - before[name]
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()) + 1e-7)


def test_backbone_with_rate_0_stays_as_it_is(small_vgg, tiny, tiny_val):
    model = small_vgg(trainable="all")
    before = state_of(model)
    quick_fit(model, tiny, tiny_val, backbone_lr=0.0, epochs=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone")


# -------------------------------------------------------------------------------------------- averages, mixed images


def test_average_of_the_weights_is_the_one_worked_out_by_hand(small_vgg, tiny, tiny_val, monkeypatch):
    model, decay, trajectory = small_vgg(), 0.7, []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            trajectory.append({name: p.detach().double() for name, p in model.head.named_parameters()})

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    history = quick_fit(model, tiny, tiny_val, epochs=1, batch_size=32, optimizer="sgd", lr=0.05, ema=decay)
    assert len(trajectory) == 5  # 130 images
    for name, found in model.head.named_parameters():
        expected = trajectory[0][name]
        for step in trajectory[1:]:
            expected = decay * expected + (1 - decay) * step[name]
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(expected, trajectory[-1][name], rtol=1e-4)
    expected = probabilities_of(model, tiny_val)
    assert history.val_accuracy[1] == pytest.approx(accuracy_score(tiny_val.labels, expected.argmax(1)))
    assert history.val_loss[1] == pytest.approx(log_loss(tiny_val.labels, expected, labels=range(10)), rel=1e-3)


class Recorder(nn.Module):
    """Stands in for a model: remembers its images and always answers with the same classes."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(10.0 * nn.functional.one_hot(answer, 10))

    def forward(self, images):
        self.images = images
        return self.logits * 1.0


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_mixed_labels_follow_the_mixed_pixels(monkeypatch, mix, share):
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *shape: torch.tensor(share))
    # Images of one grey level each tell which image a pixel comes from.
    labels = torch.tensor([3, 1, 4, 7])
    levels = torch.tensor([10, 60, 120, 200])
    images = levels.to(torch.uint8).view(4, 1, 1).expand(4, 28, 28)
    partner = [3, 0, 1, 2]  # torchvision mixes each image with the one before it
    targets = []

    def loss_function(logits, given):
        targets.append(given)
        return nn.functional.cross_entropy(logits, given)

    torch.manual_seed(3)
    larger = labels if share > 0.5 or mix == "cutmix" else labels[partner]
    model = Recorder(larger)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), backward=lambda loss: loss.backward())
    _, accuracy = train.train_one_epoch(
        model, [(images, labels)], optimizer, make_schedule(optimizer, "constant", 1, 1, 1.0), loss_function,
        accelerator, mix=mix,
    )  # fmt: skip
    assert model.images.dtype == torch.uint8 and model.images.shape == (4, 28, 28)
    (found,) = targets
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    pixels, other = model.images.long(), levels[partner].view(4, 1, 1)
    if mix == "mixup":
        own_share = torch.full((4,), share)
        mixture = share * levels + (1 - share) * levels[partner]
        assert (pixels == mixture.round().long().view(4, 1, 1)).all()
    else:
        own = pixels == levels.view(4, 1, 1)
        assert (own | (pixels == other)).all()
        own_share = own.float().mean((1, 2))
        assert 0 < own_share[0] < 1
        larger = torch.where(own_share > 0.5, labels, labels[partner])
    expected = torch.zeros(4, 10)
    for row in range(4):
        expected[row, labels[row]] += own_share[row]
        expected[row, labels[partner][row]] += 1 - own_share[row]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert accuracy == float((model.logits.argmax(1) == larger).float().mean())


def test_either_way_of_mixing_is_drawn_about_as_often(monkeypatch):
    drawn = []
    for name in ("MixUp", "CutMix"):
        kind = getattr(train, name)
        monkeypatch.setattr(kind, "forward", lambda self, *pair, name=name: drawn.append(name) or pair)
    images, labels = torch.zeros(200, 28, 28, dtype=torch.uint8), torch.arange(200) % 10
    model = Recorder(torch.tensor([0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), backward=lambda loss: loss.backward())
    batches = list(zip(images.split(1), labels.split(1), strict=True))
    schedule = make_schedule(optimizer, "constant", 1, 1, 1.0)
    torch.manual_seed(0)
    loss = nn.functional.cross_entropy
    train.train_one_epoch(model, batches, optimizer, schedule, loss, accelerator, mix="mixup-or-cutmix")
    # Of 200 fair draws fewer than 70 of one kind come up once in 50,000 times, and the seed is fixed.
    assert len(drawn) == 200 and min(drawn.count("MixUp"), drawn.count("CutMix")) > 70


def test_labels_may_be_probabilities(small_vgg, tiny, tiny_val):
    soft = copy.copy(tiny)
    soft.labels = torch.nn.functional.one_hot(tiny.labels, 10).float()
    models, histories = [small_vgg(), small_vgg()], []
    for model, data in zip(models, (tiny, soft), strict=True):
        histories.append(quick_fit(model, data, tiny_val, epochs=2))
    # All of the probability on one class is what a label says.
    pd.testing.assert_frame_equal(*(h.drop(columns="seconds") for h in histories), rtol=1e-4)
    soft.labels = torch.full((len(tiny), 10), 0.1)
    even = small_vgg()
    quick_fit(even, soft, tiny_val, epochs=2)
    assert probabilities_of(even, tiny_val).max() < probabilities_of(models[0], tiny_val).max()


def test_the_last_epoch_can_be_kept_instead_of_the_best(small_vgg, tiny, tiny_val, monkeypatch, tmp_path):
    answers = iter([(0.5, 0.9), (0.6, 0.2), (0.7, 0.1)] * 2)
    monkeypatch.setattr(train, "validate", lambda *_: next(answers))
    states = {}
    for choose in (True, False):
        model, after = small_vgg(), []
        note = lambda _, model=model, after=after: after.append(state_of(model))  # noqa: E731
        name = tmp_path / f"run-{choose}"
        quick_fit(model, tiny, tiny_val, epochs=3, choose=choose, on_epoch=note, checkpoint=name)
        states[choose] = after
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, after[0 if choose else 2][key], rtol=0, atol=0)
    assert not all(torch.equal(states[True][0][key], states[True][2][key]) for key in states[True][0])
    with pytest.raises(ValueError, match="another run"):
        quick_fit(small_vgg(), tiny, tiny_val, epochs=3, choose=True, checkpoint=tmp_path / "run-False")


@pytest.mark.parametrize("mix", MIXES)
def test_cached_features_cannot_be_mixed(small_vgg, tiny, tiny_val, mix):
    model = small_vgg()
    with pytest.raises(ValueError, match="pass the images"):
        quick_fit(model, *features_of(model, tiny, tiny_val), mix=mix)


# ------------------------------------------------------------------------------------------------------------ phases

QUICK = {"batch_size": 64, "mixed_precision": "no"}
TWO_PHASES = [
    {"trainable": "head", "epochs": 3, "lr": 5e-3, **QUICK},
    {"trainable": 3, "epochs": 2, "lr": 1e-3, **QUICK},
]
# small_vgg's head pools 64 channels to 2x2, normalises them and has layers of 16 and 10; then 64 filters of 3x3x64.
HEAD_PARAMETERS = 2 * 256 + (256 * 16 + 16) + (16 * 10 + 10)
CONVOLUTION_PARAMETERS = 64 * 64 * 9 + 64


@pytest.mark.parametrize("cached", [False, True], ids=["images", "features"])
def test_phases_unfreeze_more_and_start_from_the_best_weights(small_vgg, tiny, monkeypatch, cached):
    # Validation labels that are all wrong: the best epoch is not the last.
    wrong = FashionMNIST(tiny.images, (tiny.labels + 1) % 10)
    model, states = small_vgg(), []
    real_fit = train.fit

    def watched(model, *arguments, **settings):
        states.append(state_of(model))
        history = real_fit(model, *arguments, **settings)
        states.append(state_of(model))
        return history

    monkeypatch.setattr(train, "fit", watched)
    data = features_of(model, tiny, wrong, border=3) if cached else (tiny, wrong)
    history = fit_phases(model, *data, TWO_PHASES, progress=False)
    assert list(history.index) == [1, 2, 3, 4, 5] and history.index.name == "epoch"
    assert list(history.phase) == [1, 1, 1, 2, 2]
    assert list(history.trainable) == [HEAD_PARAMETERS] * 3 + [HEAD_PARAMETERS + CONVOLUTION_PARAMETERS] * 2

    start, after_first, before_second, after_second = states
    frozen = {name for name in start if not name.startswith("head")}
    assert {name for name in start if not torch.equal(start[name], after_first[name])} == start.keys() - frozen
    assert_same_state(after_first, before_second)
    changed = {name for name in frozen if not torch.equal(start[name], after_second[name])}
    assert changed == {"backbone.block1.2.weight", "backbone.block1.2.bias"}
    first = history[history.phase == 1].val_accuracy
    assert first.iloc[-1] < first.max()
    reference = small_vgg()
    reference.load_state_dict(before_second)
    assert accuracy_score(wrong.labels, probabilities_of(reference, wrong).argmax(1)) == pytest.approx(first.max())


def test_phases_are_refused_before_training_where_a_later_one_trains_less(small_vgg, tiny, tiny_val, monkeypatch):
    monkeypatch.setattr(train, "train_one_epoch", no_training)
    with pytest.raises(ValueError, match="order the phases the other way"):
        fit_phases(small_vgg(), tiny, tiny_val, TWO_PHASES[::-1], progress=False)


def test_finished_phases_are_loaded_and_not_repeated(small_vgg, tiny, tiny_val, tmp_path, monkeypatch):
    first, second = small_vgg(), small_vgg()
    settings = {"checkpoint": tmp_path / "model", "progress": False}
    history = fit_phases(first, tiny, tiny_val, TWO_PHASES, **settings)
    files = [f"model-phase{number}{ending}" for number in (1, 2) for ending in (".json", ".safetensors")]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    monkeypatch.setattr(train, "train_one_epoch", no_training)
    again = fit_phases(second, tiny, tiny_val, TWO_PHASES, **settings)
    pd.testing.assert_frame_equal(again, history, check_exact=True)
    assert_same_state(state_of(first), state_of(second))


def test_interrupted_phases_go_on_as_if_nothing_had_happened(small_vgg, tiny, tiny_val, tmp_path):
    whole, model = small_vgg(), small_vgg()
    expected = fit_phases(whole, tiny, tiny_val, TWO_PHASES, progress=False)
    settings = {"checkpoint": tmp_path / "model", "progress": False}
    with pytest.raises(Interrupted):  # three batches an epoch: in the second epoch of the second phase
        fit_phases(small_vgg(), interrupting(tiny, 14), tiny_val, TWO_PHASES, **settings)
    assert (tmp_path / "model-phase2.resume.pt").is_file()
    found = fit_phases(model, tiny, tiny_val, TWO_PHASES, **settings)
    pd.testing.assert_frame_equal(without_time(found), without_time(expected), check_exact=True)
    assert_same_state(state_of(model), state_of(whole))


def test_second_phase_is_trained_anew_after_another_first_one(small_vgg, tiny, tiny_val, tmp_path):
    other = [TWO_PHASES[0] | {"lr": 2e-2}, TWO_PHASES[1]]
    fit_phases(small_vgg(), tiny, tiny_val, TWO_PHASES, checkpoint=tmp_path / "model", progress=False)
    expected = fit_phases(small_vgg(), tiny, tiny_val, other, progress=False)
    with pytest.raises(ValueError, match="lr=0.005, not 0.02"):
        fit_phases(small_vgg(), tiny, tiny_val, other, checkpoint=tmp_path / "model", progress=False)
    for ending in (".json", ".safetensors"):
        (tmp_path / f"model-phase1{ending}").unlink()
    with pytest.raises(ValueError, match="model-phase2 is a finished model of another run .*starting weights"):
        fit_phases(small_vgg(), tiny, tiny_val, other, checkpoint=tmp_path / "model", progress=False)
    found = fit_phases(small_vgg(), tiny, tiny_val, other, checkpoint=tmp_path / "other", progress=False)
    pd.testing.assert_frame_equal(without_time(found), without_time(expected), check_exact=True)


def test_models_from_scratch_learn_too(tiny):
    model, few = build_model("small_cnn", weights=None, image_size=16), tiny.subset(64)
    history = quick_fit(model, few, few, epochs=6, batch_size=32)
    assert history.train_loss.iloc[-1] < 0.5 * history.train_loss.iloc[0]
    assert history.train_accuracy.iloc[-1] > 0.8


def test_precision_can_differ_from_one_training_to_the_next(small_vgg, tiny, tiny_val):
    model = small_vgg()
    data = features_of(model, tiny, tiny_val)
    for precision in ("no", "bf16"):
        history = quick_fit(model, *data, epochs=1, mixed_precision=precision)
        assert history.train_loss.notna().all()
    with torch.no_grad():
        assert model(tiny.images[:2]).dtype == torch.float32


def test_progress_bar_leaves_no_widget_in_saved_notebooks():
    assert train.tqdm.__module__ == "tqdm.std"


@pytest.mark.parametrize("shift", [4, 0.1])
def test_the_compiler_sees_augmentation_and_network_as_one(shift):
    augment = Augment(flip=0.5, shift=shift, erasing=0.5)
    model = build_model("small_cnn", weights=None, augment=augment).train()
    found = torch._dynamo.explain(model)(torch.zeros(4, 28, 28, dtype=torch.uint8))
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@pytest.mark.parametrize(("compile", "mode"), [(True, "default"), ("reduce-overhead", "reduce-overhead")])
def test_a_mode_of_compiling_reaches_the_compiler(compile, mode):
    with train.accelerator(nn.Linear(2, 2), "no", compile) as accelerate:
        assert accelerate.state.dynamo_plugin.backend.value.lower() == "inductor"
        assert accelerate.state.dynamo_plugin.mode == mode


@pytest.mark.skipif(find_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same_training(small_vgg, tiny, tiny_val):
    histories, states = [], []
    for compile in (False, True):
        model = small_vgg(head=(0, 2, (16,), False), dropout=0.0)
        histories.append(quick_fit(model, *features_of(model, tiny, tiny_val), optimizer="sgd", compile=compile))
        states.append(model.head.state_dict())
    pd.testing.assert_frame_equal(
        histories[0].drop(columns="seconds"), histories[1][list(histories[0])].drop(columns="seconds"), rtol=1e-4
    )
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-5)
    assert "compile_seconds" not in histories[0] and histories[1].compile_seconds.sum() > 0
    assert "forward" not in vars(model.head) and not any("forward" in vars(layer) for layer in model.modules())


def test_a_training_stopped_from_outside_leaves_nothing_behind(tiny_split, small_vgg):
    from accelerate.state import AcceleratorState

    model, rows = small_vgg(), []

    def stop(row):
        rows.append(row)
        if row["epoch"] == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(model, *tiny_split, epochs=3, progress=False, on_epoch=stop)
    assert not AcceleratorState._shared_state
    assert not any("forward" in vars(layer) for layer in model.modules())
    again = fit(small_vgg(), *tiny_split, epochs=3, progress=False)
    assert [row["val_accuracy"] for row in rows] == again.val_accuracy.tolist()[:2]
