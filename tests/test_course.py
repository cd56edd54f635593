"""`fmnist_utils.course`: right answers pass, usual mistakes get a hint, everything else fails, nothing crashes."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from torchvision.models import vgg16

from fmnist_utils.course import begin, check
from fmnist_utils.course.checking import Number, Verdict, digest
from fmnist_utils.data import load, train_val_split
from fmnist_utils.models import build_model, set_trainable


def test_a_verdict_is_true_only_if_right_and_reads_as_a_sentence():
    assert Verdict("right", "well done.") and not Verdict("nearly", "look there.") and not Verdict("open", "…")
    assert repr(Verdict("nearly", "look there.")) == "Nearly: look there."


@pytest.mark.parametrize("name", ["01.9", "99.1", "x", "", "../01.1"])
def test_an_unknown_exercise_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match="no exercise"):
        check(name, 1)


def test_an_answer_that_is_not_there_is_no_mistake():
    assert {check(name).level for name in ("01.1", "01.2", "02.3")} == {"open"}
    assert check("02.3", lambda images, pixels: None).level == "open"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 0, -3, "seven", [1], {}])
def test_numbers_refuse_nonsense_without_failing(value):
    for name in ("01.1", "02.2"):
        assert check(name, value).level == "wrong"


@pytest.mark.parametrize(
    ("value", "level"), [(40, "right"), (42, "right"), (42.6, "wrong"), (37, "wrong"), (7, "nearly")]
)
def test_a_number_is_right_within_its_tolerance(value, level):
    number = Number(digest("40"), 1, 2, "yes", "no", slips=((lambda v: v + 33, "add"),))
    assert number(value).level == level


def test_01_1_the_luck_of_the_best_of_200():
    for seed in range(5):  # whatever the reader's seed
        best = np.random.default_rng(seed).binomial(2_000, 0.85, 200).max() / 2_000
        assert check("01.1", 100 * (best - 0.85))
        assert (
            check("01.1", best - 0.85).level == check("01.1", 100 * best).level == check("01.1", best).level == "nearly"
        )
    assert check("01.1", 5).level == "wrong"


def test_01_2_a_pipeline_fitted_on_training_images_only():
    fitting, validation = train_val_split(load("train"), 5_000, 0)
    few = fitting.subset(1_000, 0)
    x, y = few.images.flatten(1).float().numpy(), few.labels.numpy()
    fit = make_pipeline(PCA(50), KNeighborsClassifier(5)).fit(x, y)
    assert check("01.2", fit)
    assert check("01.2", make_pipeline(PCA(40), KNeighborsClassifier(5)).fit(x, y)).level == "nearly"
    more = np.concatenate([x, validation.images[:100].flatten(1).float().numpy()])
    fit.steps[0][1].fit(more)
    assert check("01.2", fit).level == "nearly"
    assert check("01.2", make_pipeline(PCA(50), KNeighborsClassifier(5)).fit(x, y[::-1])).level == "wrong"
    assert check("01.2", make_pipeline(PCA(50), KNeighborsClassifier(5))).level == "wrong"
    assert check("01.2", 0.8).level == "wrong"


def test_01_3_images_that_five_neighbours_contradict():
    images = load("train").subset(2_000, 0)
    x, y = images.images.flatten(1).double(), images.labels
    distance = torch.cdist(x, x)  # its own oracle: no scikit-learn, double precision
    own = y[distance.fill_diagonal_(torch.inf).topk(5, largest=False).indices]
    unanimous = (own == own[:, :1]).all(1)
    right = int((unanimous & (own[:, 0] != y)).sum())
    assert check("01.3", right)
    assert check("01.3", right / 2_000).level == "nearly"
    assert check("01.3", int((own != y[:, None]).all(1).sum())).level == "nearly"
    assert check("01.3", int((own.mode(1).values != y).sum())).level in ("nearly", "wrong")
    assert check("01.3", 0).level == "nearly"
    assert check("01.3", 967).level == "wrong"


def test_02_1_one_filter_for_a_grey_channel():
    weight = build_model("vgg16", cut_after="block1", head="linear").backbone.block1[0].weight.detach()
    assert check("02.1", weight[:, :1] + weight[:, 1:2] + weight[:, 2:])
    assert check("02.1", weight.mean(1, keepdim=True)).level == "nearly"
    assert check("02.1", weight[:, :1]).level == "nearly"
    assert check("02.1", torch.zeros(64, 1, 3, 3)).level == check("02.1", weight).level == "wrong"


def test_02_2_how_much_darker_padding_makes():
    images = load("train").subset(500, 0).images
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    factor = padded.float().mean() / images.float().mean()
    assert check("02.2", factor)
    for slip in (1 / factor, 28 / 32, 1 - factor, 100 * factor):
        assert check("02.2", slip).level == "nearly"
    assert check("02.2", 0.5).level == "wrong"


def test_02_3_a_shift_that_brings_nothing_back():
    def right(images, pixels):
        moved = torch.zeros_like(images)
        moved[:, :, pixels:] = images[:, :, :-pixels]
        return moved

    def in_place(images, pixels):
        images[:] = right(images, pixels)
        return images

    assert check("02.3", right)
    assert check("02.3", lambda images, pixels: right(images, pixels).float())
    assert "left the picture" in check("02.3", lambda images, pixels: images.roll(pixels, 2)).message
    assert "Which way" in check("02.3", lambda images, pixels: right(images.flip(2), pixels).flip(2)).message
    assert "horizontal" in check("02.3", lambda images, pixels: images.roll(pixels, 1)).message
    assert "copy" in check("02.3", in_place).message
    for wrong in (
        lambda i, p: i,
        lambda i, p: i * 0,
        lambda i, p: i[:, 1:],
        lambda i, p: right(i, p + 1),
        lambda i, p: 3,
    ):
        assert check("02.3", wrong).level == "wrong"
    failing = check("02.3", lambda images: images)
    assert failing.level == "wrong" and "TypeError" in failing.message
    assert check("02.3", torch.zeros(2)).level == "wrong"


def test_answers_cannot_be_read_in_the_course():
    from fmnist_utils import ROOT

    text = "".join(path.read_text() for path in (ROOT / "fmnist_utils" / "course").glob("notebook_*.py"))
    for answer in ("2.4", "51", "0.766", ".sum(1", "torch.roll"):
        assert f" {answer}" not in text and f"={answer}" not in text


def test_begin_says_what_the_outputs_come_from(capsys):
    begin()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Profile smoke on ") and "core" in first and "torch" in second


def test_04_1_the_border_that_serves_all_rungs():
    model = set_trainable(build_model("vgg16", head="gap-256", image_size=48), 14)
    # Its own oracle: the layers of a plain VGG16 in front of its fourth block, and the preprocessing.
    with torch.device("meta"):
        poolings = [
            n for n, layer in enumerate(vgg16(weights=None).features, 1) if isinstance(layer, torch.nn.MaxPool2d)
        ]
    border = 1 + poolings[2]
    assert border == len(model.split()[0])
    assert check("04.1", border)
    for near in (border - 1, border + 7, len(set_trainable(model, "head").split()[0])):
        assert check("04.1", near).level == "nearly"
    assert check("04.1", 3).level == check("04.1", border + 1).level == "wrong"


def test_04_2_an_optimiser_with_two_rates():
    def groups(model, head, body, frozen=False):
        learning = [p for p in model.backbone.parameters() if p.requires_grad or frozen]
        return torch.optim.AdamW([{"params": model.head.parameters(), "lr": head}, {"params": learning, "lr": body}])

    assert check("04.2", groups)
    assert "changed places" in check("04.2", lambda model, a, b: groups(model, b, a)).message
    assert "do not learn" in check("04.2", lambda model, a, b: groups(model, a, b, frozen=True)).message
    one = check("04.2", lambda model, a, b: torch.optim.SGD(model.parameters(), lr=a))
    assert one.level == "nearly" and "two rates" in one.message
    only_head = check("04.2", lambda model, a, b: torch.optim.SGD(model.head.parameters(), lr=a))
    assert only_head.level == "wrong"
    assert check("04.2", lambda model, a, b: None).level == "open"
    assert check("04.2", 3).level == check("04.2", lambda model, a, b: [a, b]).level == "wrong"


def test_04_3_training_mode_that_keeps_statistics():
    def norms(model):
        return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]

    def right(model):
        model.train()
        [norm.eval() for norm in norms(model)]

    def frozen(model):
        right(model)
        [norm.requires_grad_(False) for norm in norms(model)]

    def whole(model):
        [norm.eval() for norm in norms(model.train())]
        model.drop.eval()

    def only_gradients(model):
        [norm.requires_grad_(False) for norm in norms(model.train())]

    def removed(model):
        model.train().norm = torch.nn.Identity()

    assert check("04.3", right)
    assert "no longer learn" in check("04.3", frozen).message
    assert "dropout" in check("04.3", whole).message
    assert check("04.3", only_gradients).level == check("04.3", removed).level == "wrong"
    assert check("04.3", lambda model: model.train()).level == "wrong"
    assert check("04.3", lambda model: None).level == "open"
    assert check("04.3", 1).level == "wrong"
