"""`fmnist_utils.export`: its files, run by ONNX Runtime and by LiteRT, against the models in torch.

The tests of LiteRT run where its environment is: in its default folder, or where FMNIST_LITERT says.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_utils import ROOT, __version__, data
from fmnist_utils.checkpoints import load_model
from fmnist_utils.export import __main__ as command
from fmnist_utils.export import litert
from fmnist_utils.export import onnx as export
from fmnist_utils.export.facts import facts
from fmnist_utils.models import build_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL_CNN = ROOT / "data" / "models" / "small-cnn"


@pytest.fixture(scope="module")
def real_images():
    return data.load("test").subset(256)


def run(file, images: np.ndarray) -> np.ndarray:
    """Probabilities of the images as raw numbers, by ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"images": images})[0]


@torch.no_grad()
def expected(model, images: torch.Tensor) -> np.ndarray:
    return torch.cat([model.eval()(part).softmax(1) for part in images.split(32)]).numpy()


def assert_same(found, wanted):
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.ptp(wanted, axis=0).max() > 1e-3  # images that all look alike would prove nothing
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.999


def command_line(*words: str) -> str:
    """What `python -m fmnist_utils.export` prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["export", *words])
        command.main()
    return printed.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(file of the shipped small CNN, what the command line printed)."""
    folder = tmp_path_factory.mktemp("exports") / "new"
    printed = command_line("small-cnn", "--folder", str(folder))
    return folder / "small-cnn.onnx", printed


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The same in int8; the model is named by its path."""
    folder = tmp_path_factory.mktemp("exports")
    printed = command_line(str(SMALL_CNN), "--folder", str(folder), "--int8")
    return folder / "small-cnn-int8.onnx", printed


def random_model(name, **settings):
    """Random weights, with BatchNorm statistics of real images, or all images would look alike to it."""
    model = build_model(name, weights=None, **settings).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # the mean over all batches: here of one
    with torch.no_grad():
        model(data.load("test").subset(64).images)
    return model.eval()


CASES = {
    "small CNN": lambda: load_model(SMALL_CNN),
    "smaller than the image": lambda: random_model("small_cnn", image_size=20),  # resized with antialiasing
    "larger than the image": lambda: random_model("small_cnn", image_size=40),
    "uneven pooling, 7 to 4": lambda: random_model("small_cnn", head="pooled"),
    "uneven pooling, 2 to 7": lambda: random_model("small_cnn", image_size=8, head=(0, 7, (8,), True)),
    "VGG16 cut after block3": lambda: load_model(ROOT / "data" / "models" / "vgg16-block3-two-views"),
    "VGG16, pooling 1 to 7": lambda: build_model("vgg16", image_size=32, head=(0, 7, (16,), False)),
    "ResNet50 cut after layer2": lambda: random_model("resnet50", image_size=32, cut_after="layer2"),
    "wide ResNet, stored in float16": lambda: load_model(ROOT / "data" / "models" / "wide-resnet-16-4"),
}


@pytest.mark.parametrize("case", CASES)
def test_file_gives_the_probabilities_of_torch(case, real_images, tmp_path):
    # VGG16 has its 13 ImageNet convolutions under a head of random weights; ResNet50 is random throughout. Both are
    # kept small, because writing whole ones takes longer than all else.
    model = CASES[case]()
    file = export.export_onnx(model, tmp_path / "model")
    assert file == tmp_path / "model.onnx"
    wanted = expected(model, real_images.images)
    assert_same(run(file, real_images.images.numpy()), wanted)
    measured = export.parity(model, file, real_images)
    assert measured["max_difference"] <= 1e-4 and measured["same_class"] == 1


def test_any_batch_size_gives_the_same(exported, real_images):
    together = run(exported[0], real_images.images.numpy())
    for start, count in ((0, 1), (1, 3), (4, 252)):
        part = slice(start, start + count)
        np.testing.assert_allclose(run(exported[0], real_images.images[part].numpy()), together[part], atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 28, 28), np.float32), np.zeros((28, 28), np.uint8), np.zeros((1, 32, 32), np.uint8)]
)
def test_anything_but_raw_images_is_refused(exported, wrong):
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        run(exported[0], wrong)


def test_file_and_card_say_what_they_are(exported):
    file, printed = exported
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "classify.py",
        "small-cnn.onnx",
        "small-cnn.onnx.json",
    ]
    network = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(network, full_check=True)
    image, probability = network.graph.input[0], network.graph.output[0]
    assert len(network.graph.input) == 1
    assert (image.name, image.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 28, 28]
    assert len(network.graph.output) == 1
    assert (probability.name, probability.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
    card = json.loads((file.parent / "small-cnn.onnx.json").read_text(encoding="utf-8"))
    content, source = file.read_bytes(), json.loads(SMALL_CNN.with_suffix(".json").read_text())
    assert card.pop("sha256") == hashlib.sha256(content).hexdigest() and card.pop("bytes") == len(content)
    inside = {entry.key: entry.value for entry in network.metadata_props}
    assert inside == {k: v if isinstance(v, str) else json.dumps(v) for k, v in card.items()}
    assert card["labels"] == list(data.CLASSES) and "uint8 [B, 28, 28]" in card["input"]
    assert card["weights"] == "none" and card["licence"] == "MIT." and __version__ in card["course"]
    assert card["source_sha256"] == hashlib.sha256(SMALL_CNN.with_suffix(".safetensors").read_bytes()).hexdigest()
    assert card["metrics"] == source["metrics"] and card["precision"] == "float32" and card["model"] == source["model"]
    assert card["opset"] == network.opset_import[0].version >= 18
    # Its accuracy was measured with mirrored images as well, which the file does not do.
    assert source["mirror"] and "mirror" not in card and "mirror image" in card["metrics_note"]
    assert str(ROOT).encode() not in content and b".py" not in content
    assert f"wrote {file} (1.1 MB)" in printed and "same class for 100.0%" in printed


def test_licence_names_the_pretrained_weights_and_random_ones_stay_random(small_vgg):
    said = facts(small_vgg(), "float32", {"metrics": {"test_accuracy": 0.9}})
    assert "CC BY 4.0" in said["licence"] and said["weights"].startswith("imagenet:")
    assert said["metrics_note"] == "Measured with torch in float32."
    for name in ("vit_h_14", "vgg16"):
        other = SimpleNamespace(config={"name": name}, weights="own:0123456789ab", weights_origin="Fractals")
        expected = f"pretrained weights of {name} (Fractals): see their source"
        assert expected in facts(other, "float32", {})["licence"]
    said = facts(small_vgg(weights=None), "float32", {"licence": "none of mine", "weights": "imagenet"})
    assert said["licence"] == "MIT." and said["weights"] == "none" and "metrics_note" not in said
    said = facts(small_vgg(), "int8", {"metrics": {"test_accuracy": 0.9}})
    assert said["metrics_note"].endswith("What int8 changes has not been measured for this file.")


def test_int8_is_small_and_agrees_on_most_images(exported, quantised, real_images):
    (file, _), (small, printed) = exported, quantised
    assert small.stat().st_size < file.stat().st_size / 3
    found, wanted = run(small, real_images.images.numpy()), run(file, real_images.images.numpy())
    assert found.dtype == np.float32 and np.abs(found.sum(1) - 1).max() < 1e-5
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98
    assert not np.array_equal(found, wanted)
    card = json.loads(small.with_name(small.name + ".json").read_text(encoding="utf-8"))
    assert card["precision"] == "int8" and "metrics_of_this_file" in card["metrics_note"]
    test, own = data.load("test"), card["metrics_of_this_file"]
    right = sum((run(small, part.numpy()).argmax(1) == labels.numpy()).sum()
                for part, labels in zip(test.images.split(500), test.labels.split(500), strict=True))  # fmt: skip
    assert own == {"test_accuracy": right / 10_000, "test_images": 10_000} and own != card["metrics"]
    assert f"{right / 10_000:.2%} of 10,000 test images" in printed
    network = onnx.load(small)
    assert {entry.key for entry in network.metadata_props} == card.keys() - {"bytes", "sha256"}
    kinds = {tensor.data_type for tensor in network.graph.initializer if len(tensor.dims) > 1 and tensor.dims[0] > 1}
    assert kinds == {onnx.TensorProto.INT8}
    made_by = {output: node for node in network.graph.node for output in node.output}
    for node in network.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert all(made_by[name].op_type == "DequantizeLinear" for name in node.input)
        if node.op_type == "Resize":  # preprocessing stays in float32
            assert made_by[node.input[0]].op_type != "DequantizeLinear"
    assert str(ROOT).encode() not in small.read_bytes() and f"wrote {small} (0.3 MB)" in printed


def test_int8_of_the_wide_resnet_agrees_on_most_images(real_images, tmp_path):
    model = load_model(ROOT / "data" / "models" / "wide-resnet-16-4")
    small = export.export_onnx(model, tmp_path / "int8", int8=data.load("train").subset(64))
    assert small.stat().st_size < sum(p.nbytes for p in model.parameters()) / 3
    found, wanted = run(small, real_images.images.numpy()), expected(model, real_images.images)
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98


def test_model_is_left_as_it_was_and_its_memory_layout_does_not_matter(exported, tmp_path):
    model = load_model(SMALL_CNN).to(memory_format=torch.channels_last).train()
    modes = [module.training for module in model.modules()]
    free = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = export.export_onnx(model, tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == free
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    one, other = onnx.load(file), onnx.load(exported[0])
    assert file.name == "model.onnx" and one.graph.SerializeToString() == other.graph.SerializeToString()


def test_an_error_leaves_nothing_half_written(exported, tmp_path, monkeypatch):
    model, fail = load_model(SMALL_CNN), lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    program = SimpleNamespace(model_proto=onnx.load(exported[0]))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)  # what fails comes after it
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    (tmp_path / "model.onnx.json").write_text("{}")
    monkeypatch.setattr(export, "file_sha256", fail)
    with pytest.raises(OSError, match="disk full"):
        export.export_onnx(model, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "model.onnx": b"earlier",
        "model.onnx.json": b"{}",
    }


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
from PIL import Image
from fmnist_utils.app.photos import examine, read_image
prepared = examine(read_image(open(sys.argv[1], "rb").read()))
assert type(prepared.pixels).__name__ == "ndarray"
Image.fromarray(prepared.pixels).save(sys.argv[2])
"""


def test_a_photograph_is_prepared_and_classified_without_torch(exported, real_images, tmp_path):
    from PIL import Image

    from fmnist_utils.app.photos import prepare

    sneaker = real_images.images[int((real_images.labels == data.CLASSES.index("Sneaker")).nonzero()[0])]
    photo = Image.new("RGB", (400, 300), (240, 235, 230))
    photo.paste(Image.fromarray(255 - sneaker.numpy()).resize((196, 196)), (60, 40))
    photo.save(tmp_path / "photo.png")
    small = tmp_path / "small.png"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "photo.png"), str(small)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert np.array_equal(np.asarray(Image.open(small)), prepare(photo)[0].numpy())  # the same with torch
    file, _ = exported
    # The example beside the file, away from the project, with torch and the package out of reach.
    alone = "import sys, runpy; sys.modules.update(torch=None, fmnist_utils=None); del sys.argv[0]; "
    alone += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", alone, file.with_name("classify.py"), file, small]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    wanted = run(file, np.asarray(Image.open(small))[None])[0]
    first = said.stdout.splitlines()[0]
    assert first == f"{data.CLASSES[wanted.argmax()]}: {wanted.max():.1%}" and "Sneaker" in first
    assert len(said.stdout.splitlines()) == 3
    # And the one in the guide.
    shutil.copy(small, tmp_path / "garment.png")
    (tmp_path / "exports").mkdir()
    shutil.copy(file, tmp_path / "exports" / "small-cnn.onnx")
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(import json.+?)```", guide, re.DOTALL)[1]
    lines = "import sys; sys.modules.update(torch=None, fmnist_utils=None)\n" + block
    said = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.strip() == first.replace(":", "")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_explained(missing, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing} is not installed: pip install .fmnist-utils\[export\]"):
        export.export_onnx(load_model(SMALL_CNN), tmp_path / "model", int8=tiny)
    if missing == "onnxruntime":
        with pytest.raises(ImportError, match=r"pip install .fmnist-utils\[export\]"):
            export.parity(load_model(SMALL_CNN), tmp_path / "model.onnx", tiny)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small-cn"], "Did you mean 'small-cnn'"),
        (["small-cnn", "--environment", "x"], "--environment is for --litert"),
    ],
)
def test_mistakes_on_the_command_line_get_a_sentence(words, message, capsys):
    with pytest.raises(SystemExit):
        command_line(*words)
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def litert_python():
    if not (python := litert.find()):
        pytest.skip("no environment for LiteRT: python -m fmnist_utils.export small-cnn --litert makes one")
    return python


@pytest.fixture(scope="module")
def lite(litert_python, tmp_path_factory):
    """(LiteRT file of the shipped small CNN, what the command line printed)."""
    folder = tmp_path_factory.mktemp("exports") / "new"
    printed = command_line("small-cnn", "--litert", "--environment", str(litert_python), "--folder", str(folder))
    return folder / "small-cnn.tflite", printed


def test_litert_file_gives_the_probabilities_of_torch_and_says_what_it_is(lite, litert_python, real_images):
    file, printed = lite
    found, seconds = litert.interpret(file, real_images.images.numpy(), litert_python)
    assert_same(found, expected(load_model(SMALL_CNN), real_images.images))
    assert seconds.shape == (256,) and (seconds > 0).all()
    assert f"wrote {file} (1.1 MB)" in printed and "same class for 100.0%" in printed
    assert sorted(path.name for path in file.parent.iterdir()) == ["small-cnn.tflite", "small-cnn.tflite.json"]
    card, content = json.loads((file.parent / "small-cnn.tflite.json").read_text()), file.read_bytes()
    assert card.pop("sha256") == hashlib.sha256(content).hexdigest() and card.pop("bytes") == len(content)
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read("card.json")) == card
        assert archive.read("labels.txt").decode().splitlines() == list(data.CLASSES)
    assert "uint8 [1, 28, 28]" in card["input"] and card["licence"] == "MIT." and card["precision"] == "float32"
    assert card["source_sha256"] == hashlib.sha256(SMALL_CNN.with_suffix(".safetensors").read_bytes()).hexdigest()
    assert content[4:8] == b"TFL3" and str(ROOT).encode() not in content and b".py" not in content


@pytest.mark.parametrize(
    "case", ["VGG16 cut after block3", "ResNet50 cut after layer2", "VGG16, pooling 1 to 7", "larger than the image"]
)
def test_litert_agrees_with_torch(case, litert_python, real_images, tmp_path):
    model = CASES[case]()
    file = export.export_litert(model, tmp_path / "model", python=litert_python)
    found, _ = litert.interpret(file, real_images.images.numpy(), litert_python)
    assert_same(found, expected(model, real_images.images))


def test_litert_int8_is_small_and_agrees_on_most_images(litert_python, real_images, tmp_path):
    model = load_model(SMALL_CNN)
    file = export.export_litert(model, tmp_path / "model.tflite", python=litert_python, int8=True)
    assert (
        file.name == "model-int8.tflite"
        and file.stat().st_size < SMALL_CNN.with_suffix(".safetensors").stat().st_size / 3
    )
    found = export.parity(model, file, real_images, python=litert_python)
    assert found["same_class"] >= 0.98 and found["max_difference"] > 1e-4


def test_litert_has_no_resizing_to_fewer_pixels(tmp_path):
    with pytest.raises(ValueError, match="takes images of 20×20 pixels(.|\n)*28 or more"):
        export.export_litert(CASES["smaller than the image"](), tmp_path / "model", python=tmp_path)
    assert not any(tmp_path.iterdir())


def test_litert_is_refused_where_it_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "FOLDER", tmp_path / "none")
    monkeypatch.delenv("FMNIST_LITERT", raising=False)
    with pytest.raises(ValueError, match="--litert makes it"):
        export.parity(load_model(SMALL_CNN), tmp_path / "model.tflite", data.load("test").subset(1))
    monkeypatch.setattr(litert, "os", SimpleNamespace(name="nt", environ=os.environ))
    with pytest.raises(RuntimeError, match="on Windows, use WSL"):
        litert.environment(tmp_path / "none")
    assert not any(tmp_path.iterdir())


def test_conversion_that_fails_says_why_and_leaves_nothing(tmp_path):
    python = tmp_path / "empty" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    venv.create(tmp_path / "empty")
    with pytest.raises(RuntimeError, match="could not convert(.|\n)*No module named 'numpy'"):
        export.export_litert(load_model(SMALL_CNN), tmp_path / "new" / "model", python=python)
    assert not any((tmp_path / "new").iterdir())


def test_litert_environment_is_made_once(tmp_path, monkeypatch, capsys):
    create = venv.create
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="takes a network and 7 GB"):
        patch.setattr(venv, "create", lambda folder, with_pip: create(folder))  # without pip, which takes seconds
        litert.environment(tmp_path / "own")
    assert litert.find(tmp_path / "own") is None
    monkeypatch.setattr(litert, "PACKAGES", ("pip",))  # is there: no network needed
    python = litert.environment(tmp_path / "own")
    monkeypatch.setenv("FMNIST_LITERT", str(tmp_path / "own"))
    capsys.readouterr()
    assert litert.environment() == litert.find() == python and not capsys.readouterr().out
    done = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert (tmp_path / "own").samefile(done.stdout.strip())
    assert litert.environment(python) == python


def test_litert_environment_touches_no_other_folder(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        litert.environment(tmp_path)
    with pytest.raises(ValueError, match="whose torch must stay"):
        litert.environment(sys.prefix)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
