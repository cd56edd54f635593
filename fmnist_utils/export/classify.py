"""Which garment is it? ``python classify.py small-cnn.onnx picture.png`` needs numpy, Pillow and onnxruntime only.

The picture should look like Fashion-MNIST's: grey, the garment bright on black, filling the frame. ``prepare`` in
``fmnist_utils.app.photos``, which needs no torch either, makes such pictures of photographs. Copied beside each
exported file, and explained in ``notebooks/07_deployment.ipynb``.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def classify(file, picture):
    """(label, probability) of the ten classes, the likeliest first; ``picture`` is uint8 [28, 28]."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    (probabilities,) = session.run(None, {"images": np.asarray(picture)[None]})[0]
    return sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    small = Image.open(sys.argv[2]).convert("L").resize((28, 28))
    for label, probability in classify(sys.argv[1], small)[:3]:
        print(f"{label}: {probability:.1%}")
