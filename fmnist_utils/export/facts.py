"""What an exported file says about itself, to somebody who finds it alone: its model card.

The headings of Mitchell et al. (2019, arXiv:1810.03993) are answered by these fields: model details (``model``,
``weights``, ``licence``, ``recipe``, …), ``intended_use``, ``factors``, metrics (``metrics``, ``metrics_note``),
``evaluation_data``, training data (``data``), quantitative analyses (``metrics``, ``metrics_of_this_file``), ethical
considerations (``ethics``) and caveats (``limits``). Explained in ``notebooks/07_deployment.ipynb``.
"""

from fmnist_utils import __version__
from fmnist_utils.data import CLASSES
from fmnist_utils.models import Classifier

_INPUT = (
    'Input "images": uint8 [{0}, 28, 28], rows from the top, 0 = black background, bright garment, like Fashion-MNIST; '
    'resizing and normalising are inside. Output "probabilities": float32 [{0}, 10], in the order of the labels.'
)
_TEXTS = {
    "intended_use": (
        "Learning and teaching, and trying out tools, on small grey product pictures of one garment. Not for decisions "
        "about people, and not where a wrong class costs something and no person looks."
    ),
    "factors": (
        "Shirt, T-shirt, pullover and coat are confused most. Pictures that are turned, badly cut, or before an uneven "
        "ground get worse answers: results/benchmarks/photographs-cpu.json has made-up photographs by kind."
    ),
    "evaluation_data": "The 10,000 test images of Fashion-MNIST, prepared like the training images.",
    "ethics": (
        "The pictures show products, and no people. One shop's catalogue of about 2017 stands for all clothing: what "
        "that shop did not sell gets a wrong name."
    ),
    "limits": (
        "Whatever it is given, it names one of ten classes. Not measured on real photographs, nor on worn clothes. "
        "Measure it on pictures like yours before you rely on it."
    ),
}
_VGG16_LICENCE = (
    "MIT. Holds VGG16's ImageNet weights by Karen Simonyan and Andrew Zisserman, University of Oxford (CC BY 4.0, "
    "https://creativecommons.org/licenses/by/4.0/), in another format and, where trained further, changed."
)


def facts(model: Classifier, precision: str, card: dict, batch: str = "B") -> dict:
    """``card``, such as a model's in ``data/models``, and what the exported file of ``model`` adds to it.

    ``batch`` is how many images the file takes, in words. Metrics in ``card`` are said to be those of the model in
    torch, unmirrored or not; what was counted with the file itself is in ``metrics_of_this_file``, if anything.
    """
    card = dict(card)
    mirrored = card.pop("mirror", False)
    if "metrics" in card:
        note = ["Measured with torch in float32."]
        if mirrored:
            note.append("They belong to the mean over each image and its mirror image; this file does not mirror: give "
                        "it both and average.")  # fmt: skip
        if precision != "float32":
            counted = "metrics_of_this_file" in card
            note.append("What this file scores is in metrics_of_this_file." if counted else
                        f"What {precision} changes has not been measured for this file.")  # fmt: skip
        card["metrics_note"] = " ".join(note)
    name, licence = model.config["name"], "MIT."
    if model.weights != "none":
        other = (
            f"MIT. Built on pretrained weights of {name} ({model.weights_origin}): see their source for their licence."
        )
        licence = _VGG16_LICENCE if name == "vgg16" and model.weights_origin == "ImageNet" else other
    about = {"course": f"Fashion-MNIST transfer learning, fmnist_utils {__version__}", "labels": list(CLASSES)}
    about |= {"input": _INPUT.format(batch), **_TEXTS, "precision": precision}
    return card | about | {"weights": model.weights, "licence": licence, "model": model.config}
