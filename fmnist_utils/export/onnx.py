"""A trained model as one ONNX or LiteRT file that other programs run without torch: grey images in, probabilities out.

``python -m fmnist_utils.export small-cnn`` writes ``exports/small-cnn.onnx`` and a card beside it; ``--int8`` the same
with whole-number arithmetic in ``exports/small-cnn-int8.onnx``. Needs ``pip install "fmnist-utils[export]"``.
``--litert`` writes ``exports/small-cnn.tflite``, for phones and small boards, and sets up what that takes.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from torch import nn

from fmnist_utils.checkpoints import save_model
from fmnist_utils.data import CLASSES, FashionMNIST, replacing
from fmnist_utils.evaluate import predict
from fmnist_utils.export import litert
from fmnist_utils.export.facts import facts
from fmnist_utils.models import Classifier
from fmnist_utils.sources.files import file_sha256

__all__ = ["export_litert", "export_onnx", "load_onnx", "parity"]


def export_onnx(
    model: Classifier, path: str | Path, *, int8: FashionMNIST | None = None, test: FashionMNIST | None = None, **card
) -> Path:
    """Write ``<path>.onnx`` with all weights, and ``<path>.onnx.json``, its card; returns the path of the first.

    The network in the file takes ``images``, uint8 [B, 28, 28] with any B, and gives ``probabilities``, float32
    [B, 10]: :class:`~fmnist_utils.preprocess.Preprocess` and softmax are part of it. Labels, input convention, limits,
    licence, identity of the weights and everything in ``card`` (such as ``metrics`` and ``mirror`` of a card in
    ``data/models``) are in both, and the card also has size and SHA-256. Mirroring at test time is not in the file, and
    its card says so where the metrics used it. The model is left as it was, its weights in contiguous order.

    ``int8``, a few hundred *training* images, makes it ``<path>-int8.onnx``: convolutions and fully connected layers
    compute in 8 bits, with one scale per channel of the weights and ranges of activations as on these images (static
    post-training quantisation; Jacob et al., 2018, arXiv:1712.05877). Measure what that costs with :func:`parity`.

    With ``test`` images, the accuracy of the file itself on them is counted and goes into both as
    ``metrics_of_this_file``.

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
    if test is not None:
        hits = _run(network.SerializeToString(), test.images).argmax(1) == test.labels.numpy()
        card["metrics_of_this_file"] = {"test_accuracy": round(float(hits.mean()), 6), "test_images": len(test)}
    about = facts(model, "float32" if int8 is None else "int8", card)
    about["opset"] = next(opset.version for opset in network.opset_import if opset.domain in ("", "ai.onnx"))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(network, texts)

    file = _named(path, ".onnx", int8 is not None)
    with _with_card(file, about) as temporary:
        temporary.write_bytes(network.SerializeToString())
    return file


def export_litert(model: Classifier, path: str | Path, *, python: Path, int8: bool = False, **card) -> Path:
    """The same as :func:`export_onnx` for LiteRT: ``<path>.tflite`` and its card; returns the path of the first.

    ``python`` is that of :func:`fmnist_utils.export.litert.environment`, where the conversion runs. The file takes one
    image at a time, uint8 [1, 28, 28]: the converter allows no batch of any size. Its metadata are files that any unzip
    program finds in it (``unzip -p small-cnn.tflite card.json``), as TensorFlow Lite's metadata format has them:
    ``card.json`` and ``labels.txt``, one label a line. ``int8`` makes it ``<path>-int8.tflite``, see
    :func:`fmnist_utils.export.litert.convert`. Raises ``ValueError`` for a network that takes smaller images than
    28×28, and ``RuntimeError`` with the converter's message.
    """
    if (side := model.preprocess.image_size) < 28:
        raise ValueError(
            f"This network takes images of {side}×{side} pixels, and LiteRT's converter has no antialiased resizing to "
            "fewer pixels: build it with an image_size of 28 or more, or export it to ONNX."
        )
    about = facts(model, "int8" if int8 else "float32", card, batch="1")
    file = _named(path, ".tflite", int8)
    with TemporaryDirectory() as folder, _with_card(file, about) as temporary:
        save_model(model, Path(folder, "model"))
        litert.convert(Path(folder, "model"), temporary, python, int8)
        with ZipFile(temporary, "a") as archive:  # ZipInfo: the same date in every file
            archive.writestr(ZipInfo("card.json"), json.dumps(about, indent=1))
            archive.writestr(ZipInfo("labels.txt"), "\n".join(CLASSES))
    return file


def load_onnx(path: str | Path | bytes, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX file, or its content, as a function: uint8 [B, 28, 28] -> float32 [B, 10], by ONNX Runtime on the CPU.

    Raises ``ImportError`` with what to install.
    """
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]


def parity(model: Classifier, path: str | Path, data: FashionMNIST, *, python: Path | None = None) -> dict[str, float]:
    """How far a file of :func:`export_onnx` or :func:`export_litert`, run on the CPU, is from ``model`` on ``data``.

    ``max_difference`` is the largest difference of a probability, ``same_class`` the share of images with the same
    predicted class. ONNX Runtime runs the first, LiteRT's interpreter the second, under ``python`` or else what
    :func:`fmnist_utils.export.litert.find` finds. Raises ``ImportError`` or ``ValueError`` with what to install.
    """
    if Path(path).suffix == ".onnx":
        probabilities = _run(path, data.images)
    elif python := python or litert.find():
        probabilities, _ = litert.interpret(path, data.images.numpy(), python, torch.get_num_threads())
    else:
        raise ValueError(f"{path} needs LiteRT's environment: python -m fmnist_utils.export NAME --litert makes it.")
    expected = predict(model, data)
    return {
        "max_difference": float(np.abs(probabilities - expected).max()),
        "same_class": float((probabilities.argmax(1) == expected.argmax(1)).mean()),
    }


def _run(network: str | Path | bytes, images: torch.Tensor) -> np.ndarray:
    """Probabilities, float32 [N, 10], by ONNX Runtime."""
    run = load_onnx(network, torch.get_num_threads())
    return np.concatenate([run(part.numpy()) for part in images.split(50)])


def _named(path: str | Path, ending: str, int8: bool) -> Path:
    return Path(path).with_name(Path(path).name.removesuffix(ending) + ("-int8" if int8 else "") + ending)


@contextmanager
def _with_card(file: Path, about: dict) -> Iterator[Path]:
    """A temporary name for ``file``; it and its card replace earlier ones once both are complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, replacing(file.with_name(f"{file.name}.json")) as text:
        yield temporary
        card = about | {"bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
        text.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8", newline="\n")


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is not installed: pip install "fmnist-utils[export]"') from error


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
