"""What does unfreezing buy? A ladder: more and more layers learn, from the same start and for the same epochs.

``python benchmarks/unfreezing.py`` trains the head alone (8 epochs, AdamW, one-cycle to 1e-3, batch 128). Each rung
goes on from a copy of that start for 5 epochs (3 in the profile ``cpu``) of batch 64 with weight decay 0.05: the
control trains the head alone once more, at 1e-3; the others train the head at 5e-4 and the backbone's last layers, as
many as the rung says, at 1e-4. What stays frozen is computed once. Every rung is compared with the control on the same
validation images (McNemar's test). ``fit`` keeps the weights of the best of the epochs, which flatters all rungs alike.
The test set is not used.

``results/benchmarks/unfreezing-<profile>.json`` holds a row per ladder, with its rungs; ``seconds`` are those of the
pass through the frozen layers and of the training. ``batchnorm`` is that of ``build_model``: whether BatchNorm keeps
ImageNet's statistics while its layers learn (``"eval"``); there ``against_batchnorm_train`` is McNemar's test against
the rung that does not keep them. A network whose ImageNet weights cannot be had is left out.
Explained in notebooks/04_resnet50_fine_tuning.ipynb.
"""

import copy
import time

from common import options, record, splits

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.evaluate import mcnemar, predict
from fmnist_utils.models import Classifier, WeightsUnavailable, build_model, set_trainable
from fmnist_utils.plots import ladder_title, use_style
from fmnist_utils.plots import ladders as draw
from fmnist_utils.train import fit

RESNET = {"name": "resnet50", "head": "gap-256", "image_size": pick(smoke=32, cpu=48, full=112)}
VGG = {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56}
WHOLE = {"name": "vgg16", "head": "gap-256", "image_size": pick(smoke=32, cpu=48, full=112)}
#: (the model, training images, rungs: the first is the control).
LADDERS = pick(
    smoke=[(WHOLE, 64, ("head", 7, "all"))],
    cpu=[
        (RESNET | {"batchnorm": "train"}, 2_000, ("head", "all")),
        (RESNET | {"batchnorm": "eval"}, 2_000, ("head", "all")),
        (WHOLE, 2_000, ("head", 7, 14)),
    ],
    full=[
        (RESNET | {"batchnorm": "train"}, 20_000, ("head", 16, 32, "all")),
        (RESNET | {"batchnorm": "eval"}, 20_000, ("head", "all")),
        (VGG, 10_000, ("head", 7, "all")),
    ],
)
VAL, HEAD_EPOCHS, EPOCHS = pick(smoke=(50, 1, 1), cpu=(1_500, 8, 3), full=(5_000, 8, 5))


def learn(model: Classifier, data: dict, trainable: str | int, **settings) -> tuple[dict, float]:
    """Train ``model``; (what it was trained on: features where layers are frozen, else images; seconds)."""
    began = time.perf_counter()
    set_trainable(model, trainable)
    frozen = any(True for _ in model.split()[0].parameters())
    inputs = {k: cache_features(model, v, verbose=False) for k, v in data.items()} if frozen else data
    fit(model, inputs["train"], inputs["val"], progress=False, **settings)
    return inputs, time.perf_counter() - began


def climb(settings: dict, images: int, rungs: tuple, in_training: dict) -> dict:
    """One ladder; raises ``WeightsUnavailable`` where the network's ImageNet weights cannot be had.

    ``in_training`` keeps, by network and rung, which validation images were right with ``batchnorm="train"``.
    """
    data, start = splits(train=images, val=VAL), build_model(**settings)
    learn(start, data, "head", epochs=HEAD_EPOCHS, lr=1e-3, batch_size=128)
    rows, control = [], None
    for rung in rungs:
        model = copy.deepcopy(start)
        rates = {"lr": 1e-3} if rung == "head" else {"lr": 5e-4, "backbone_lr": 1e-4}
        inputs, seconds = learn(model, data, rung, epochs=EPOCHS, batch_size=64, weight_decay=0.05, **rates)
        correct = {k: predict(model, inputs[k]).argmax(1) == data[k].labels.numpy() for k in data}
        control = correct["val"] if control is None else control
        against = mcnemar(correct["val"], control)
        rows.append(
            {
                "rung": rung,
                "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "train_accuracy": float(correct["train"].mean()),
                "val_accuracy": float(correct["val"].mean()),
                "seconds": round(seconds, 1),
                "only_this": against["only_a"],
                "only_control": against["only_b"],
                "p_value": against["p_value"],
            }
        )
        if settings.get("batchnorm") == "train":
            in_training[settings["name"], rung] = correct["val"]
        elif (settings["name"], rung) in in_training:
            rows[-1]["against_batchnorm_train"] = mcnemar(correct["val"], in_training[settings["name"], rung])
        print(settings["name"], rows[-1], flush=True)
    described = {key: start.config[key] for key in ("name", "cut_after", "head", "image_size", "batchnorm")}
    counts = {
        "weights": start.weights,
        "weights_origin": start.weights_origin,
        "train_images": images,
        "val_images": VAL,
    }
    return described | counts | {"head_epochs": HEAD_EPOCHS, "epochs": EPOCHS, "seed": 0, "rungs": rows}


def headline(ladders: list[dict]) -> dict:
    """The ladder that gained most, as :func:`~fmnist_utils.results.save_benchmark` takes it."""

    def best(ladder: dict) -> dict:
        return max(ladder["rungs"], key=lambda row: row["val_accuracy"])

    top = max(ladders, key=lambda ladder: best(ladder)["val_accuracy"] - ladder["rungs"][0]["val_accuracy"])
    rung = {"head": "the head", "all": "everything"}.get(best(top)["rung"], f"the last {best(top)['rung']} layers")
    images = f"{top['train_images']:,} training and {top['val_images']:,} validation images"
    return {
        "setting": f"{', '.join(ladder_title(top).splitlines()[:2])}, {images}: {rung} "
        f"learning against the head alone, from the same start (epochs: {top['epochs']})",
        "ours": 100 * best(top)["val_accuracy"],
        "reference": 100 * top["rungs"][0]["val_accuracy"],
        "unit": "% correct",
    }


def main() -> None:
    options("What does unfreezing buy?")
    ladders, left_out, in_training = [], [], {}
    for ladder in LADDERS:
        try:
            ladders.append(climb(*ladder, in_training))
        except WeightsUnavailable as error:
            left_out.append(f"{ladder[0]['name']}: no ImageNet weights")
            print(error)
    use_style()
    figure = draw({ladder_title(ladder): ladder["rungs"] for ladder in ladders}, VAL)
    record("unfreezing", **headline(ladders), figure=figure, ladders=ladders, left_out=left_out)


if __name__ == "__main__":
    main()
