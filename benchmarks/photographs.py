"""Does the app tell the truth about photographs? Made-up ones, of which we know the truth: accuracy, and its warnings.

``python benchmarks/photographs.py`` writes ``results/benchmarks/photographs-<profile>.json`` and a figure. Validation
images become photographs on many grounds, with things in the way, turned, two at once, half in shade, or none at all;
they come in as JPEG by the door that an upload takes. ``ours``: the share of wrong answers with a warning, over the
small CNN's photographs of kinds that were ``HELD_OUT``, never looked at while the cut, the warnings and their limits
were chosen; ``reference``: what the distance to the training data alone would have caught. ``kinds``: for each, with
95% intervals, the accuracy, the share of wrong answers flagged, of right ones flagged, of all wrong and unflagged.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from made_photographs import HELD_OUT, KINDS, photographs

from fmnist_utils import pick
from fmnist_utils.app import photos, serving
from fmnist_utils.data import FashionMNIST, load, train_val_split
from fmnist_utils.evaluate import accuracy_interval, predict
from fmnist_utils.explain import outliers
from fmnist_utils.models import load_model
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.results import save_benchmark

#: Photographs of each kind, by model: VGG16 takes ten times as long.
COUNTS = pick(smoke={"small-cnn": 8}, cpu={"small-cnn": 100, "vgg16-block3-two-views": 20},
              full={"small-cnn": 100, "vgg16-block3-two-views": 20})  # fmt: skip


def judged(name: str, garments: FashionMNIST) -> pd.DataFrame:
    """One row for each photograph: what, kind, right, the warning in short, and whether the distance alone warns."""
    model, detector = load_model(serving.MODELS / name), outliers.load(serving.MODELS / name)
    flip, rows = serving.cards()[name].get("test_time_flip", False), []
    for what, kind in ((what, kind) for what, kinds in KINDS.items() for kind in kinds):
        taken, labels = photographs(garments, kind, COUNTS[name])
        ready = [photos.examine(image) for image in taken]
        pixels = torch.stack([one.pixels for one in ready])
        probabilities = predict(model, FashionMNIST(pixels, labels), flip=flip)
        found = zip(ready, probabilities, labels.tolist(), *detector.judge(model, pixels), strict=True)
        for one, p, label_, share, upright, turns in found:
            picture, answer = serving.Picture(*one), serving.Answer(p, None, share, upright, int(turns))
            warning = (serving.warning(picture, answer) or ("",))[0]
            right = what != "no single garment" and int(p.argmax()) == label_
            rows.append((what, kind, right, warning, bool(share < outliers.UNUSUAL), int(turns)))
        print(name, kind, f"{np.mean([row[2] for row in rows[-len(ready) :]]):.0%}", flush=True)
    return pd.DataFrame(rows, columns=["what", "kind", "right", "warning", "distance_warns", "turns"])


def _share(chosen: pd.Series) -> dict | None:
    """How many of them, and the 95% interval of the share; None of no photographs."""
    if not len(chosen):
        return None
    low, high = accuracy_interval(int(chosen.sum()), len(chosen))
    return {"share": round(float(chosen.mean()), 4), "of": len(chosen), "low": round(low, 4), "high": round(high, 4)}


def report(rows: pd.DataFrame) -> dict:
    flagged = rows.warning != ""
    return {
        "accuracy": _share(rows.right),
        "wrong_flagged": _share(flagged[~rows.right]),
        "right_flagged": _share(flagged[rows.right]),
        "wrong_and_unflagged": _share(~rows.right & ~flagged),
        "warnings": rows.warning[flagged].value_counts().to_dict(),
        "turns_proposed": rows.turns[rows.turns > 0].value_counts().to_dict(),
    }


def draw(rows: pd.DataFrame) -> plt.Figure:
    use_style()
    kinds = [kind for group in KINDS.values() for kind in group][::-1]
    flagged, left = rows.warning != "", np.zeros(len(kinds))
    parts = {
        "right": (rows.right & ~flagged, COLORS["train"], 1),
        "right, with a warning": (rows.right & flagged, COLORS["train"], 0.45),
        "wrong, with a warning": (~rows.right & flagged, COLORS["muted"], 0.45),
        "wrong, no warning": (~rows.right & ~flagged, "#C0392B", 1),
    }
    names = [kind + " *" * (kind in HELD_OUT) for kind in kinds]
    figure, axis = plt.subplots(figsize=(8, 9))
    for text, (chosen, color, alpha) in parts.items():
        width = chosen.groupby(rows.kind).mean()[kinds].to_numpy()
        axis.barh(names, width, left=left, color=color, alpha=alpha, label=text)
        left += width
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set(xlim=(0, 1), title="Made-up photographs, small CNN (* held out while the limits were chosen)")
    axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.04))
    return figure


def main() -> None:
    garments = train_val_split(load("train"))[1]
    tables = {name: judged(name, garments) for name in COUNTS}
    rows = next(iter(tables.values()))
    wrong = rows[rows.kind.isin(HELD_OUT) & ~rows.right]
    reports = {}
    for name, table_ in tables.items():
        held = table_.kind.isin(HELD_OUT)
        sets = {"looked at": table_[~held], "held out": table_[held]}
        reports[name] = {
            "summary": {
                f"{text}: {what}": report(part[part.what == what]) for text, part in sets.items() for what in KINDS
            }
            | {f"{text}: all": report(part) for text, part in sets.items()},
            "kinds": {kind: report(part) for kind, part in table_.groupby("kind", sort=False)},
        }
    path = save_benchmark(
        "photographs",
        setting=f"warnings of {len(wrong)} wrong answers about photographs of held-out kinds, against distance alone",
        ours=100 * (wrong.warning != "").mean(),
        reference=100 * wrong.distance_warns.mean(),
        unit="%",
        figure=draw(rows),
        held_out=list(HELD_OUT),
        photographs_of_each_kind=COUNTS,
        limits={"unusual": outliers.UNUSUAL, "turned": outliers.TURNED, "unsure": serving.UNSURE},
        models=reports,
    )
    print(path)


if __name__ == "__main__":
    main()
