"""A trained model as one ONNX file that other programs run without torch: raw grey images in, probabilities out.

``python -m fmnist_utils.export small-cnn`` writes ``exports/small-cnn.onnx`` and a card beside it; ``--int8`` the same
with whole-number arithmetic in ``exports/small-cnn-int8.onnx``. Needs ``pip install "fmnist-utils[export]"``.
"""

import argparse
import json
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import nn

from fmnist_utils import ROOT, __version__
from fmnist_utils.data import CLASSES, FashionMNIST, load, replacing, train_val_split
from fmnist_utils.evaluate import predict
from fmnist_utils.models import Classifier, check_name, file_sha256, load_model

INPUT = (
    'Input "images": uint8 [B, 28, 28], rows from the top, 0 = black background, bright garment, as in Fashion-MNIST; '
    'resizing and normalising are inside. Output "probabilities": float32 [B, 10], in the order of the labels.'
)
_VGG16_LICENCE = (
    "MIT. Holds VGG16's ImageNet weights by Karen Simonyan and Andrew Zisserman, University of Oxford (CC BY 4.0, "
    "https://creativecommons.org/licenses/by/4.0/), in another format and, where trained further, changed."
)


def export_onnx(model: Classifier, path: str | Path, *, int8: FashionMNIST | None = None, **card) -> Path:
    """Write ``<path>.onnx`` with all weights, and ``<path>.onnx.json``, its card; returns the path of the first.

    The network in the file takes ``images``, uint8 [B, 28, 28] with any B, and gives ``probabilities``, float32
    [B, 10]: :class:`~fmnist_utils.preprocess.Preprocess` and softmax are part of it. Labels, input convention, licence,
    identity of the weights and everything in ``card`` (such as ``metrics`` and ``test_time_flip`` of a card in
    ``data/models``) are in both, and the card also has size and SHA-256. Mirroring at test time is not in the file, and
    its card says so where the metrics used it. The model is left as it was.

    ``int8``, a few hundred *training* images, makes it ``<path>-int8.onnx``: convolutions and fully connected layers
    compute in 8 bits, with one scale per channel of the weights and ranges of activations as on these images (static
    post-training quantisation; Jacob et al., 2018, arXiv:1712.05877). Measure what that costs with :func:`parity`.

    Existing files are replaced once both new ones are complete. Raises ``ImportError`` with what to install.
    """
    onnx = _package("onnx")
    _package("onnxscript")  # torch's exporter needs it
    if int8 is not None:
        _package("onnxruntime")
    device, mode = next(model.parameters()).device, model.training
    try:
        program = torch.onnx.export(
            # Weights in channels-last order, as training leaves them, would make a longer graph.
            nn.Sequential(model.to("cpu", memory_format=torch.contiguous_format), nn.Softmax(1)).eval(),
            (torch.zeros(2, 28, 28, dtype=torch.uint8),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["probabilities"],
            external_data=False,
            verbose=False,
        )
    finally:
        model.to(device).train(mode)
    network = program.model_proto
    # The exporter's notes quote source files by their paths on this machine.
    for part in (*network.graph.node, *network.graph.value_info, *network.graph.input, *network.graph.output):
        part.ClearField("metadata_props")
    if int8 is not None:
        network = _quantised(network, int8)
    facts = _facts(model, "float32" if int8 is None else "int8", card)
    facts["opset"] = next(opset.version for opset in network.opset_import if opset.domain in ("", "ai.onnx"))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(network, texts)

    path = Path(path)
    name = path.name.removesuffix(".onnx") + ("" if int8 is None else "-int8")
    file, text = path.with_name(f"{name}.onnx"), path.with_name(f"{name}.onnx.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, replacing(text) as temporary_text:
        temporary.write_bytes(network.SerializeToString())
        facts |= {"bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
        temporary_text.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8", newline="\n")
    return file


def parity(model: Classifier, path: str | Path, data: FashionMNIST) -> dict[str, float]:
    """How far a file of :func:`export_onnx`, run by ONNX Runtime on the CPU, is from ``model`` on these images.

    ``max_difference`` is the largest difference of a probability, ``same_class`` the share of images with the same
    predicted class. Raises ``ImportError`` with what to install.
    """
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {"images": part.numpy()})[0] for part in data.images.split(50)])
    expected = predict(model, data)
    return {
        "max_difference": float(np.abs(found - expected).max()),
        "same_class": float((found.argmax(1) == expected.argmax(1)).mean()),
    }


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is not installed: pip install "fmnist-utils[export]"') from error


def _facts(model: Classifier, precision: str, card: dict) -> dict:
    """``card`` and what the file itself should say to somebody who finds it alone."""
    card = dict(card)
    mirrored = card.pop("test_time_flip", False)
    if "metrics" in card:
        card["metrics_note"] = "Measured with torch in float32."
        if mirrored:
            card["metrics_note"] += (
                " They belong to the mean over each image and its mirror image; this file does not mirror: give it "
                "both and average."
            )
    name, licence = model.config["name"], "MIT."
    if model.weights != "none":
        other = f"MIT. Built on torchvision's ImageNet weights of {name} (BSD 3-Clause)."
        licence = _VGG16_LICENCE if name == "vgg16" else other
    return card | {
        "course": f"Fashion-MNIST transfer learning, fmnist_utils {__version__}",
        "labels": list(CLASSES),
        "input": INPUT,
        "precision": precision,
        "weights": model.weights,
        "licence": licence,
        "model": model.config,
    }


def _quantised(network, images: FashionMNIST):
    """The ONNX network with its convolutions and fully connected layers in int8; the rest stays float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = ({"images": part.numpy()} for part in images.images.split(32))
    with TemporaryDirectory() as folder:
        plain, prepared, result = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "int8"))
        plain.write_bytes(network.SerializeToString())
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            # 7 bits of a weight: sums of 8 overflow on processors without VNNI, and results should not depend on those.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            # Logits in steps of a 255th of their range would make coarse probabilities.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        return onnx.load(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a model in data/models, or the path of a saved one without its ending")
    parser.add_argument("--folder", type=Path, default=Path("exports"), help="where the files go (exports)")
    parser.add_argument("--int8", action="store_true", help="quantise it, with 512 training images")
    arguments = parser.parse_args()
    folder = ROOT / "data" / "models"
    shipped = tuple(sorted(card.stem for card in folder.glob("*.json")))
    path = folder / arguments.name if arguments.name in shipped else Path(arguments.name)
    text = path.with_name(path.name + ".json")
    if not text.is_file():
        check_name("model", arguments.name, shipped)
    model = load_model(path)
    card = json.loads(text.read_text(encoding="utf-8"))
    kept = ("recipe", "profile", "command", "data", "metrics", "test_time_flip")
    card = {key: card[key] for key in kept if key in card} | {"source_sha256": card["sha256"]}
    images = train_val_split(load("train"))[0].subset(512) if arguments.int8 else None
    file = export_onnx(model, arguments.folder / path.name, int8=images, **card)
    found = parity(model, file, load("test").subset(256))
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB) and its card {file.name}.json")
    print(
        f"against torch on 256 test images: probabilities differ by at most {found['max_difference']:.1g}, "
        f"same class for {found['same_class']:.1%}"
    )


if __name__ == "__main__":
    main()
