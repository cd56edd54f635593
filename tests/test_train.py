"""`fmnist_utils.train` against scikit-learn, closed formulas and itself, interrupted."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from fmnist_utils import train
from fmnist_utils.cache import CachedFeatures, cache_features
from fmnist_utils.data import FashionMNIST, make_loader
from fmnist_utils.models import build_model, load_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.train import evaluate, fit, make_optimizer, make_schedule


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
    loss, accuracy = evaluate(model, make_loader(tiny, 64))
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


@pytest.mark.parametrize("setting", [{"lr": 1e-3}, {"epochs": 5}, {"seed": 1}, {"schedule": "cosine"}], ids=str)
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
        ("cosine", lambda step: LR * (1 + math.cos(math.pi * step / STEPS)) / 2),
        ("exponential", lambda step: LR * DECAY ** (step / PER_EPOCH)),
        ("constant", lambda step: LR),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedules_follow_their_formulas(name, formula):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make_schedule(optimizer, name, LR, STEPS, PER_EPOCH, DECAY)
    found = [scheduler.get_last_lr()[0]]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    np.testing.assert_allclose(found, [formula(step) for step in range(STEPS + 1)], rtol=1e-6, atol=1e-9)


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
    ("setting", "nearest"), [({"optimizer": "adamm"}, "adam"), ({"schedule": "one_cycle"}, "one-cycle")], ids=str
)
def test_unknown_names_are_refused_with_the_nearest_known_one(small_vgg, tiny, tiny_val, setting, nearest):
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
        quick_fit(small_vgg(), tiny, tiny_val, **setting)


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
