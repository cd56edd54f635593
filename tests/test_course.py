"""`fmnist_utils.course`: right answers pass, usual mistakes get a hint, everything else fails, nothing crashes."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from torchvision.models import vgg16

from fmnist_utils import ROOT
from fmnist_utils.checkpoints import load_model
from fmnist_utils.course import begin, check
from fmnist_utils.course.checking import Number, Verdict, digest
from fmnist_utils.data import load, train_val_split
from fmnist_utils.explain.outliers import load_outliers
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


def test_07_1_a_test_of_two_programs_that_can_fail():
    def right(expected, found, limit):
        return bool((abs(found - expected) <= limit).all() and (found.argmax(1) == expected.argmax(1)).all())

    assert check("07.1", right)
    assert "one sign" in check("07.1", lambda a, b, limit: right(a, np.maximum(a, b), limit)).message
    assert "two classes" in check("07.1", lambda a, b, limit: (abs(a - b) <= limit).all()).message

    def forgets_nan(expected, found, limit):
        apart, same = abs(found - expected), np.nan_to_num(found).argmax(1) == np.nan_to_num(expected).argmax(1)
        return not (apart > limit).any() and same.all()

    assert "not a number" in check("07.1", forgets_nan).message
    for wrong in (
        lambda a, b, limit: True,
        lambda a, b, limit: False,
        lambda a, b, limit: abs(a - b).mean() <= limit,
        lambda a, b, limit: (a == b).all(),
        lambda a, b: True,
    ):
        assert check("07.1", wrong).level == "wrong"
    assert check("07.1", True).level == "wrong" and check("07.1", lambda *_: None).level == "open"


def test_07_2_what_a_looser_limit_finds():
    folder = ROOT / "data" / "models" / "small-cnn"
    model, detector = load_model(folder), load_outliers(folder)
    garments = train_val_split(train_val_split(load("train"))[1], 2_000)[0].subset(1_000).images
    flagged = {}
    for name, images in (("upright", garments), ("down", garments.flip(1))):
        with torch.no_grad():  # the distance again, by solving instead of by the stored formula
            x = model.eval().backbone(model.preprocess(images)).flatten(2).mean(2).double()
        apart = x[:, None] - detector.means.double()
        solved = torch.linalg.solve(torch.linalg.inv(detector.precision.double()), apart.flatten(0, 1).T).T
        distance = (apart * solved.view_as(apart)).sum(2).amin(1)
        share = (detector.distances.double()[None] >= distance[:, None]).double().mean(1)
        flagged[name] = [100 * (share < limit).double().mean().item() for limit in (0.01, 0.05)]
    one, five = flagged["down"]
    assert check("07.2", five - one)
    for slip in ((five - one) / 100, one - five, five, one, flagged["upright"][1] - flagged["upright"][0]):
        assert check("07.2", slip).level == "nearly"
    assert check("07.2", five - one + 2).level == "wrong"


def test_07_3_mirroring_inside_the_file(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from fmnist_utils.export import onnx

    model = load_model(ROOT / "data" / "models" / "small-cnn").eval()

    class Asked(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.model, self.answer = model, answer
            self.eval()

        def forward(self, images):
            return self.answer(self.model, images)

    def exported(answer, **settings):
        settings = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} | settings
        example = (torch.zeros(2, 28, 28, dtype=torch.uint8),)
        names = {"input_names": ["images"], "output_names": ["probabilities"]}
        made = torch.onnx.export(
            Asked(answer), example, dynamo=True, external_data=False, verbose=False, **names, **settings
        )
        made.save(tmp_path / "file.onnx")
        return check("07.3", tmp_path / "file.onnx")

    def as_if_exported(answer):
        """Exporting takes seconds, and what the file computes is compared with torch in tests/test_export.py."""
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(onnx, "load_onnx", lambda _: lambda images: answer(model, torch.from_numpy(images)).numpy())
            return check("07.3", tmp_path / "file.onnx")

    assert exported(lambda m, x: (m(x).softmax(1) + m(x.flip(2)).softmax(1)) / 2)
    assert "one size" in exported(lambda m, x: m(x).softmax(1), dynamic_shapes=None).message
    assert "logits" in as_if_exported(lambda m, x: ((m(x) + m(x.flip(2))) / 2).softmax(1)).message
    assert "once" in as_if_exported(lambda m, x: m(x).softmax(1)).message
    assert "add up to 2" in as_if_exported(lambda m, x: m(x).softmax(1) + m(x.flip(2)).softmax(1)).message
    assert "upside down" in as_if_exported(lambda m, x: (m(x).softmax(1) + m(x.flip(1)).softmax(1)) / 2).message
    assert as_if_exported(lambda m, x: m(x)).level == "wrong"
    for wrong in (tmp_path / "none.onnx", 0.93, str(tmp_path)):
        assert check("07.3", wrong).level == "wrong"
    (tmp_path / "junk.onnx").write_bytes(b"no network")
    assert check("07.3", tmp_path / "junk.onnx").level == "wrong"


def test_answers_cannot_be_read_in_the_course():
    text = "".join(path.read_text() for path in (ROOT / "fmnist_utils" / "course").glob("notebook_*.py"))
    for answer in ("2.4", "51", "0.766", ".sum(1", "torch.roll", '"acd"', "396", "cumsum", "np.isin", "0.9396"):
        assert f" {answer}" not in text and f"={answer}" not in text


def test_begin_says_what_the_outputs_come_from(capsys):
    begin()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Profile smoke on ") and "core" in first and "torch" in second


def test_05_1_how_many_disagreements_a_lead_of_40_bears():
    def p(n):  # its own oracle: the sum of binomial coefficients, in whole numbers
        tail = sum(math.comb(n, k) for k in range((n - 40) // 2 + 1))
        return 2 * tail / 2**n

    right = max(n for n in range(40, 800, 2) if p(n) < 0.05)
    assert check("05.1", right) and check("05.1", right + 2)
    for slip in ((right + 40) / 2, (right - 40) / 2, right / 10_000, 40**2 / 1.96**2):
        assert check("05.1", slip).level == "nearly"
    assert check("05.1", 40).level == check("05.1", 600).level == "wrong"


def test_05_2_a_threshold_that_keeps_a_promise():
    def right(confidence, hits, promise):
        order = np.argsort(-confidence)
        share = hits[order].cumsum() / np.arange(1, len(order) + 1)
        return confidence[order][np.flatnonzero(share >= promise)[-1]]

    def first_dip(confidence, hits, promise):
        order = np.argsort(-confidence)
        share = hits[order].cumsum() / np.arange(1, len(order) + 1)
        return confidence[order][np.flatnonzero(share < promise)[0] - 1]

    assert check("05.2", right)
    assert check("05.2", lambda c, h, p: min(x for x in c if h[c >= x].mean() >= p))
    assert check("05.2", first_dip).level == "nearly"
    for wrong in (lambda c, h, p: 0.0, lambda c, h, p: 2.0, lambda c, h, p: c.min(), lambda c: 1, 0.9):
        assert check("05.2", wrong).level == "wrong"
    assert check("05.2", lambda c, h, p: None).level == "open"


def test_05_3_a_split_that_tears_no_family():
    def right(families, share):
        known = np.unique(families)
        drawn = np.random.default_rng(1).choice(known, round(share * len(known)), replace=False)
        return np.isin(families, drawn)

    def by_image(families, share):
        return np.random.default_rng(1).random(len(families)) < share

    def at_the_border(families, share):
        order = np.argsort(families, kind="stable")
        test = np.zeros(len(families), bool)
        test[order[: int(share * len(families)) + 3]] = True
        return test

    assert check("05.3", right)
    assert check("05.3", lambda f, s: list(right(f, s)))
    assert check("05.3", lambda f, s: right(f, 1 - s)).level == "nearly"
    assert check("05.3", lambda f, s: right(f, s / 2)).level == "nearly"
    assert "border" in check("05.3", at_the_border).message
    assert "300 families" in check("05.3", by_image).message
    numbers = lambda f, s: np.flatnonzero(right(f, s))  # noqa: E731
    for wrong in (by_image, numbers, lambda f, s: right(f, 0), lambda f, s: right(f, s)[:-1], np.zeros(3, bool)):
        assert check("05.3", wrong).level == "wrong"
    assert check("05.3", lambda f, s: None).level == "open"


def test_06_1_the_best_of_200_equal_models():
    low, high = 0.9, 0.946  # its own oracle: drawn scores, and halving the interval
    for _ in range(14):
        middle = (low + high) / 2
        best = np.random.default_rng(0).binomial(10_000, middle, (20_000, 200)).max(1).mean() / 10_000
        low, high = (middle, high) if best < 0.946 else (low, middle)
    assert check("06.1", low)
    for slip in (100 * low, 0.946 - low, 100 * (0.946 - low), 2 * 0.946 - low):
        assert check("06.1", slip).level == "nearly"
    assert check("06.1", 0.946).level == check("06.1", 0.93).level == "wrong"


def test_06_2_a_pareto_front():
    def right(costs, accuracies):
        order = np.argsort(costs)
        reached = np.maximum.accumulate(np.asarray(accuracies)[order])
        return [int(row) for row, best in zip(order, reached, strict=True) if accuracies[row] == best]

    assert check("06.2", right)
    assert check("06.2", lambda c, a: np.array(right(c, a)))
    assert "order" in check("06.2", lambda c, a: sorted(right(c, a))).message
    assert "Which way" in check("06.2", lambda c, a: right([-x for x in c], a)).message
    for wrong in (lambda c, a: list(range(len(c))), lambda c, a: [], lambda c, a: [int(np.argmax(a))], lambda c, a: 3):
        assert check("06.2", wrong).level == "wrong"
    assert check("06.2", lambda c, a: None).level == "open"
    assert check("06.2", [1, 2]).level == "wrong"


def test_06_3_how_many_trials_are_enough():
    from fmnist_utils import ROOT

    trials = json.loads((ROOT / "results" / "benchmarks" / "search-full.json").read_text())["trials"]
    scores = sorted((t["val_accuracy"] for t in trials if t["state"] == "COMPLETE"), reverse=True)
    count = len(scores)  # its own oracle: the expected best of k, counted instead of drawn

    def expected(k):
        return sum(score * math.comb(count - 1 - i, k - 1) for i, score in enumerate(scores)) / math.comb(count, k)

    enough = next(k for k in range(1, count + 1) if expected(k) >= scores[0] - 0.001)
    assert check("06.3", enough)
    assert check("06.3", count).level == "nearly"
    assert check("06.3", 1).level == check("06.3", 40).level == "wrong"


def test_03_1_what_may_be_computed_once():
    # a and d: fixed up to the head; c: up to block 2. b, e and f change something in front of every border.
    for answer in ("acd", "ACD", "d, c, a", {"a", "c", "d"}, ["a", "c", "d"]):
        assert check("03.1", answer)
    for answer, letter in (("ad", "c"), ("abcd", "b"), ("acdf", "f"), ("cd", "a")):
        verdict = check("03.1", answer)
        assert verdict.level == "nearly" and f"about {letter}" in verdict.message
    for answer in ("be", "abcdef", "", "xyz", 7, "all"):
        assert check("03.1", answer).level == "wrong"


def test_03_2_a_linear_head_on_frozen_features():
    settings = {"cut_after": "block3", "image_size": 32}
    few = train_val_split(load("train"))[0].subset(150)

    model = build_model("vgg16", head="linear", **settings)
    with torch.no_grad():
        pooled = model.head[:2](model.backbone(model.preprocess(few.images)))
        for _ in range(50):  # the running statistics become those of these images
            normalised = model.head[2].train()(pooled)
    last = model.head[3]
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(last(normalised), few.labels)
        last.weight.data -= torch.autograd.grad(loss, last.weight)[0]
    assert check("03.2", model.eval())
    assert check("03.2", build_model("vgg16", head="linear", **settings)).level == "wrong"  # not trained
    assert "preset" in check("03.2", build_model("vgg16", head="pooled", **settings)).message
    assert "block 3" in check("03.2", build_model("vgg16", head="linear", cut_after="block1", image_size=32)).message
    model.backbone.block2[0].bias.data += 1
    assert "only the head" in check("03.2", model).message.lower()
    assert check("03.2", model.head).level == check("03.2", 0.8).level == "wrong"


def test_03_3_features_of_two_blocks():
    model = build_model("vgg16", cut_after="block3", head="linear", image_size=56)
    part = model.backbone

    @torch.no_grad()
    def both(images, order=(0, 1), side=4):
        second = part.block2(part.block1(model.preprocess(images)))
        maps = second, part.block3(second)
        pooled = [torch.nn.functional.adaptive_avg_pool2d(m, side).flatten(1) for m in maps]
        return torch.cat([pooled[i] for i in order], 1)

    assert check("03.3", both) and check("03.3", lambda images: both(images, (1, 0)))
    assert "other" in check("03.3", lambda images: both(images)[:, :2048]).message
    assert "flatten" in check("03.3", lambda images: both(images)[..., None]).message
    assert check("03.3", lambda images: both(images, side=2)).level == "wrong"
    assert check("03.3", lambda images: both(images // 2)).level == "wrong"
    assert check("03.3", lambda images: None).level == "open"
    assert check("03.3", lambda images: 3).level == check("03.3", both(load("test").images[:2])).level == "wrong"
    failing = check("03.3", lambda: 0)
    assert failing.level == "wrong" and "TypeError" in failing.message


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
