"""Does the app tell the truth about photographs? Accuracy and warnings on made-up ones, of which we know it."""

import io

import made_photographs as made
import numpy as np
import pandas as pd
import torch
from common import options, record, splits
from PIL import Image

from fmnist_utils import pick
from fmnist_utils.app import photos, serving
from fmnist_utils.data import FashionMNIST
from fmnist_utils.evaluate import accuracy_interval
from fmnist_utils.explain import outliers
from fmnist_utils.plots import outcomes, use_style

#: Photographs of each kind, by model: VGG16 takes ten times as long as the small CNN.
MOST = {"small-cnn": 100, "wide-resnet-16-4": 100, "vgg16-block3-two-views": 20}
COUNTS = pick(smoke={"small-cnn": 8}, cpu=MOST, full=MOST)


#: By what is in the picture and kind, the settings of :func:`compose`; kinds looked at while limits were chosen, first.
KINDS = {
    "one upright garment": {
        "even ground": {},
        "coloured ground": {"ground": made.coloured},
        "shaded ground": {"ground": made.shaded},
        "striped ground": {"ground": made.striped},
        "soft shadows": {"light": made.soft_shadow},
        "tiles": {"ground": made.tiles},
        "carpet": {"ground": made.carpet},
        "bricks": {"ground": made.bricks},
        "crumpled paper": {"ground": made.paper},
        "cut tightly": {"tight": True},
        "wood floor": {"ground": made.wood},
        "wrinkled sheet": {"ground": made.sheet},
        "rough wall": {"ground": made.wall},
        "pegs on a line": {"things": (made.pegs,)},
        "coin": {"things": (made.coin,)},
        "hanger": {"things": (made.hanger,)},
        "price tag": {"things": (made.price_tag,)},
        "parquet": {"ground": made.parquet},
        "blanket": {"ground": made.bed},
        "concrete": {"ground": made.concrete},
        "edge of a table": {"ground": made.table},
        "label": {"things": (made.label,)},
        "wooden hanger": {"things": (made.wooden_hanger,)},
        "ruler": {"things": (made.ruler,)},
        "marble": {"ground": made.marble},
        "lawn": {"ground": made.lawn},
        "checked cloth": {"ground": made.checked},
        "sand": {"ground": made.sand},
        "scissors": {"things": (made.scissors,)},
        "light of a lamp": {"light": made.lamp},
        "cork": {"ground": made.cork},
        "terrazzo": {"ground": made.terrazzo},
        "jute mat": {"ground": made.jute},
        "cardboard": {"ground": made.cardboard},
        "pen": {"things": (made.pen,)},
        "fingertips": {"things": (made.fingertips,)},
        "shadows of leaves": {"light": made.leaves},
        "leather": {"ground": made.leather},
        "denim": {"ground": made.denim},
        "gravel": {"ground": made.gravel},
        "knitted blanket": {"ground": made.knitted},
        "phone": {"things": (made.phone,)},
        "cable": {"things": (made.cable,)},
        "light of a window": {"light": made.window},
    },
    "one garment, not upright": {
        "tilted by 10°": {"turn": 10},
        "tilted by 30°": {"turn": 30},
        "upside down": {"turn": 180},
        "turned left": {"turn": 90},
        "turned right": {"turn": 270},
        "turned left on parquet": {"turn": 90, "ground": made.parquet},
        "upside down on a blanket": {"turn": 180, "ground": made.bed},
        "turned right on marble": {"turn": 270, "ground": made.marble},
        "upside down on cork": {"turn": 180, "ground": made.cork},
        "turned left on denim": {"turn": 90, "ground": made.denim},
    },
    "no single garment": {
        "two garments": {"second": True},
        "half in shade": {"light": made.half_shade},
        "nothing, even ground": {},
        "nothing, wood floor": {"ground": made.wood},
        "nothing, tiles": {"ground": made.tiles},
        "two garments on concrete": {"second": True, "ground": made.concrete},
        "half in soft shade": {"light": made.dim_half},
        "nothing, parquet": {"ground": made.parquet},
        "nothing, blanket": {"ground": made.bed},
        "two garments on sand": {"second": True, "ground": made.sand},
        "nothing, lawn": {"ground": made.lawn},
        "nothing, checked cloth": {"ground": made.checked},
        "two garments on jute": {"second": True, "ground": made.jute},
        "nothing, terrazzo": {"ground": made.terrazzo},
        "two garments on a knitted blanket": {"second": True, "ground": made.knitted},
        "nothing, leather": {"ground": made.leather},
    },
}
#: Nothing was chosen by these, and they were tried once, with the limits as they are.
HELD_OUT = ("leather", "denim", "gravel", "knitted blanket", "phone", "cable", "light of a window",
            "turned left on denim", "two garments on a knitted blanket", "nothing, leather")  # fmt: skip


def photographs(garments: FashionMNIST, kind: str, count: int, seed: int = 0) -> tuple[list[Image.Image], torch.Tensor]:
    """``count`` photographs of a kind, as the app reads them, and the labels of what is in them, int64 [count]."""
    random = np.random.default_rng([seed, *kind.encode()])
    settings = next(kinds[kind] for kinds in KINDS.values() if kind in kinds)
    chosen, taken = random.permutation(len(garments))[:count], []
    for index in chosen:
        garment = None if kind.startswith("nothing") else garments.images[index].numpy()
        other = {"second": garments.images[random.integers(len(garments))].numpy()} if "second" in settings else {}
        buffer = io.BytesIO()
        made.compose(garment, random, **settings | other).save(buffer, "JPEG", quality=85)
        taken.append(photos.read_image(buffer.getvalue()))
    return taken, garments.labels[chosen]


def judged(name: str, garments: FashionMNIST) -> pd.DataFrame:
    """One row for each photograph: what, kind, right, the warning in short, and whether the distance alone warns."""
    rows = []
    for what, kind in ((what, kind) for what, kinds in KINDS.items() for kind in kinds):
        taken, labels = photographs(garments, kind, COUNTS[name])
        ready = [photos.examine(image) for image in taken]
        answers = serving.answers(name, torch.stack([one.pixels for one in ready]), explain=False)
        for one, answer, label in zip(ready, answers, labels.tolist(), strict=True):
            warning = (serving.warning(serving.Picture(*one), answer) or ("",))[0]
            right = what != "no single garment" and int(answer.probabilities.argmax()) == label
            rows.append((what, kind, right, warning, answer.share < outliers.UNUSUAL, answer.turns))
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


def became(rows: pd.DataFrame) -> pd.DataFrame:
    """What became of the photographs of each kind, as ``plots.outcomes`` draws it: shares that add up to 1."""
    flagged = rows.warning != ""
    parts = {
        "right": rows.right & ~flagged,
        "right, warned": rows.right & flagged,
        "wrong, warned": ~rows.right & flagged,
        "wrong, no warning": ~rows.right & ~flagged,
    }
    kinds = pd.DataFrame(parts).groupby(rows.kind, sort=False).mean()
    return kinds.rename(index=lambda kind: kind + " *" * (kind in HELD_OUT))


def main() -> None:
    options(__doc__.splitlines()[0])
    use_style()
    garments = splits(val=5_000)["val"]
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
    record(
        "photographs",
        setting=f"warnings of {len(wrong)} wrong answers about photographs of held-out kinds, against distance alone",
        ours=100 * (wrong.warning != "").mean(),
        reference=100 * wrong.distance_warns.mean(),
        unit="%",
        figure=outcomes(became(rows), f"Made-up photographs, {next(iter(tables))} (* held out)"),
        held_out=list(HELD_OUT),
        photographs_of_each_kind=COUNTS,
        limits={"unusual": outliers.UNUSUAL, "turned": outliers.TURNED, "unsure": outliers.UNSURE},
        models=reports,
    )


if __name__ == "__main__":
    main()
