"""Pretrained weights of one's own, and downloads that end: `fmnist_utils.sources.weights` and `.download`."""

import os
import pickle
import socket
import threading
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model, resnet50
from torchvision.models.resnet import Bottleneck, ResNet

from fmnist_utils import ROOT, data
from fmnist_utils.checkpoints import load_model, save_model
from fmnist_utils.models import WeightsUnavailable, build_model, find_weights
from fmnist_utils.results.tables import results_table
from fmnist_utils.results.writing import save_result
from fmnist_utils.sources import download as downloads
from fmnist_utils.sources import idx as idx_files
from fmnist_utils.sources import weights
from fmnist_utils.sources.download import download
from fmnist_utils.sources.files import file_sha256

pytestmark = pytest.mark.filterwarnings("error")

PRUNED = "resnet50_imagenet_pruned.safetensors"
SHARED = next(
    (
        folder
        for folder in [*os.environ.get("FMNIST_WEIGHTS", "").split(os.pathsep), ROOT.parent / "shared" / "weights"]
        if folder and (Path(folder) / PRUNED).is_file()
    ),
    None,
)
needs_shared = pytest.mark.skipif(SHARED is None, reason=f"no {PRUNED} in FMNIST_WEIGHTS or ../shared/weights")


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A project folder and a torch cache, both empty; no download, no FMNIST_WEIGHTS."""
    monkeypatch.setattr(weights, "ROOT", tmp_path / "project")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.delenv("FMNIST_WEIGHTS", raising=False)
    monkeypatch.setattr(weights, "fetch", lambda url, path: (_ for _ in ()).throw(OSError("no network here")))
    (tmp_path / "project" / "data" / "weights").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")


def state_of(name: str, features_only: bool = False) -> dict[str, torch.Tensor]:
    """Random weights whose every tensor is drawn, batch statistics too."""
    torch.manual_seed(3)
    net = get_model(name, weights=None)
    for key, buffer in net.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return {k: v for k, v in net.state_dict().items() if not (features_only and k.startswith(("classifier", "fc")))}


def half(state: dict) -> dict:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items() if "num_batches" not in k}


@pytest.fixture(scope="module")
def resnet18_state():
    return state_of("resnet18")


def write(path: Path | str, state: dict, **metadata: str) -> Path:
    save_file(state, path, metadata or None)
    return Path(path)


def small(name: str = "resnet18", **settings):
    return build_model(name, image_size=32, head="linear", **settings)


# Files of one's own, of each kind


@pytest.mark.parametrize("kind", ["state dict", "checkpoint", "DataParallel", "safetensors"])
def test_a_file_of_ones_own_is_what_the_backbone_starts_from(kind, resnet18_state, monkeypatch):
    if kind == "safetensors":
        file = write("mine.safetensors", resnet18_state)
    else:
        content = {"module." + k: v for k, v in resnet18_state.items()} if kind == "DataParallel" else resnet18_state
        file = Path("mine.pth")
        torch.save({"epoch": 3, "state_dict": content} if kind == "checkpoint" else content, file)
    model = small(weights=str(file))
    assert model.weights == f"own:{file_sha256(file)[:12]}" and model.weights_origin == file.name
    assert torch.equal(model.backbone.layer3[1].conv2.weight, resnet18_state["layer3.1.conv2.weight"])
    assert torch.equal(model.backbone.layer3[1].bn2.running_var, resnet18_state["layer3.1.bn2.running_var"])
    assert not any(p.requires_grad for p in model.backbone.parameters())  # pretrained, so only the head learns
    assert model.config["weights"] == file.name


def test_features_without_a_classifier_and_in_float16_are_enough():
    state = half(state_of("mobilenet_v2", features_only=True))
    write("features.safetensors", state, network="mobilenet_v2", origin="ImageNet, cut")
    model = small("mobilenet_v2", weights="features.safetensors")
    assert model.weights.startswith("imagenet:") and model.weights_origin == "ImageNet, cut"
    first = model.backbone.features0[0].weight
    assert first.dtype == torch.float32 and torch.equal(first, state["features.0.0.weight"].float())


def test_every_network_of_a_small_choice_takes_its_own_state():
    # mnasnet asks for the version of its file's format, and densenet's published names are no longer allowed.
    for name in ("mnasnet0_5", "densenet121", "squeezenet1_1", "googlenet"):
        net = get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
        write("any.safetensors", net.state_dict(), network=name)
        model = small(name, weights="any.safetensors")
        theirs = list(net.state_dict().values())
        for key, tensor in model.backbone.named_parameters():
            assert any(t.shape == tensor.shape and torch.equal(t, tensor) for t in theirs), (name, key)
        assert model.weights.startswith("own:")


def test_own_vgg16_sees_torchvisions_statistics_and_the_original_its_own():
    state = {k: v for k, v in state_of("vgg16", features_only=True).items() if k.startswith("features.")}
    write("vgg.safetensors", state)
    white = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    own = small("vgg16", weights="vgg.safetensors", cut_after="block1").preprocess(white)
    original = ROOT / "data" / "weights" / "vgg16_imagenet_features.safetensors"
    theirs = small("vgg16", weights=original, cut_after="block1").preprocess(white)
    assert own[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert theirs[0, 0, 0, 0] == pytest.approx(255 - 123, abs=1e-2)


def test_the_stride_sits_where_the_header_says():
    state = half(resnet50(weights=None).state_dict())
    write("caffe.safetensors", state, network="resnet50", stride_in="first 1x1 convolution")
    write("torch.safetensors", state, network="resnet50", stride_in="3x3 convolution")
    for file, strides in (("caffe", ((2, 2), (1, 1))), ("torch", ((1, 1), (2, 2)))):
        model = small("resnet50", weights=f"{file}.safetensors")
        for stage in (model.backbone.layer2, model.backbone.layer3, model.backbone.layer4):
            assert (stage[0].conv1.stride, stage[0].conv2.stride) == strides
            assert stage[1].conv1.stride == stage[1].conv2.stride == (1, 1)
        assert model.backbone.layer1[0].conv1.stride == (1, 1)
    assert small("resnet50", weights=None).backbone.layer2[0].conv2.stride == (2, 2)


# What is wrong is said in a sentence


def faulty(kind: str, state: dict) -> str:
    state, file = dict(state), "faulty.safetensors"
    if kind == "missing":
        del state["layer2.0.conv1.weight"]
    elif kind == "surplus":
        state["layer9.0.conv1.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    if kind in ("missing", "surplus", "shape"):
        write(file, state)
    elif kind == "network":
        write(file, state, network="resnet34")
    elif kind == "stride":
        write(file, state, stride_in="first 1x1 convolution")
    elif kind == "another network":
        write(file, state_of("squeezenet1_1"))
    elif kind == "damaged":
        Path(write(file, state)).write_bytes(Path(file).read_bytes()[:-9])
    elif kind == "code":
        file = "faulty.pth"
        Path(file).write_bytes(pickle.dumps({"conv1.weight": Path("x")}, protocol=2))
    elif kind == "whole model":
        file = "faulty.pth"
        torch.save(torch.nn.Linear(2, 2), file)
    elif kind == "truncated":
        file = "faulty.pth"
        torch.save(state, file)
        Path(file).write_bytes(Path(file).read_bytes()[:-99])
    elif kind == "no state":
        file = "faulty.pth"
        torch.save({"epoch": 3}, file)
    return file


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("missing", "lack layer2.0.conv1.weight "),
        ("surplus", "have layer9.0.conv1.weight, which it has not"),
        ("shape", "have layer2.0.conv1.weight of 128×64×1×1 instead of 128×64×3×3"),
        ("network", "was made for resnet34, not for resnet18"),
        ("stride", "stride_in='first 1x1 convolution', which resnet18 cannot have"),
        ("another network", r"lack conv1.weight, .* and \d+ more"),
        ("damaged", "no sound safetensors file"),
        ("code", "damaged or holds code, which is never run"),
        ("whole model", "damaged or holds code, which is never run"),
        ("truncated", "damaged or holds code"),
        ("no state", "is no state dict"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(kind, sentence, resnet18_state):
    file = faulty(kind, resnet18_state)
    with pytest.raises(ValueError, match=sentence) as caught:
        small(weights=file)
    assert file in str(caught.value) and "\n" not in str(caught.value).strip()


def test_what_is_no_file_and_no_known_name_is_said():
    with pytest.raises(ValueError, match="weights='imagnet' is not known. Did you mean 'imagenet'"):
        small(weights="imagnet")
    with pytest.raises(ValueError, match="small_cnn has no pretrained weights"):
        build_model("small_cnn", weights="mine.safetensors")


# Where files are looked for


def test_folders_are_searched_by_name_relative_to_here_and_to_the_project(tmp_path, monkeypatch, resnet18_state):
    for base in (tmp_path / "files", tmp_path / "project"):
        (base / "kept").mkdir()
        file = write(base / "kept" / "mine.safetensors", resnet18_state, origin="Fractals")
        monkeypatch.setenv("FMNIST_WEIGHTS", os.pathsep.join([str(tmp_path / "absent"), "kept"]))
        found = find_weights("resnet18", "mine.safetensors")
        assert found.source == str(file.absolute()) and found.origin == "Fractals"
        file.unlink()
    with pytest.raises(WeightsUnavailable) as caught:
        small(weights="elsewhere/mine.safetensors")
    for place in ("files/elsewhere", "files/kept", "project/kept", "absent", "project/data/weights"):
        assert str(tmp_path / place / "mine.safetensors") in str(caught.value)


def test_imagenet_weights_are_found_by_their_header(tmp_path, monkeypatch, resnet18_state):
    monkeypatch.setenv("FMNIST_WEIGHTS", str(tmp_path / "files"))
    Path("0_damaged.safetensors").write_bytes(b"no header")
    write("a.safetensors", {"x": torch.zeros(1)}, network="resnet50", origin="ImageNet")
    write("b.safetensors", resnet18_state, network="resnet18", origin="Fractals")
    with pytest.raises(WeightsUnavailable) as caught:
        small()
    assert "0_damaged.safetensors is no sound safetensors file" in str(caught.value)
    file = write("c.safetensors", resnet18_state, network="resnet18", origin="ImageNet, pruned, 8 bits")
    model = small()
    assert model.weights == f"imagenet:{file_sha256(file)[:12]}"
    assert model.weights_origin == "ImageNet, pruned, 8 bits" and model.config["weights"] == "imagenet"


def test_the_shipped_vgg16_comes_first_and_torchs_cache_last(tmp_path, monkeypatch, resnet18_state):
    monkeypatch.setenv("FMNIST_WEIGHTS", str(tmp_path / "files"))
    shipped = ROOT / "data" / "weights" / "vgg16_imagenet_features.safetensors"
    (tmp_path / "project" / "data" / "weights" / shipped.name).symlink_to(shipped)
    write("vgg16.safetensors", {"x": torch.zeros(1)}, network="vgg16", origin="ImageNet")
    assert find_weights("vgg16").source.endswith(shipped.name)
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save(resnet18_state, cached)
    digest = weights.file_sha256
    monkeypatch.setattr(weights, "file_sha256", lambda p: "f37072fd" + 56 * "c" if p == cached else digest(p))
    assert find_weights("resnet18").source == str(cached)
    write("mine.safetensors", resnet18_state, network="resnet18", origin="ImageNet")
    assert find_weights("resnet18").source.endswith("mine.safetensors")
    assert find_weights("resnet18", sha256="f37072fdcccc").source == str(cached)  # the only one that will do


# Saving, loading, tables


def test_a_saved_model_finds_its_file_again_by_name_and_hash(tmp_path, monkeypatch, resnet18_state, tiny):
    file = write("mine.safetensors", resnet18_state)
    model = small(weights=file.absolute())
    save_model(model, tmp_path / "saved")
    with torch.no_grad():
        expected = model(tiny.images[:4])
        assert torch.equal(load_model(tmp_path / "saved")(tiny.images[:4]), expected)
    (tmp_path / "moved").mkdir()
    file.rename(tmp_path / "moved" / file.name)
    write(file, state_of("resnet18") | {"conv1.weight": torch.zeros(64, 3, 7, 7)})  # same name, other weights
    with pytest.raises(WeightsUnavailable, match="mine.safetensors holds other weights"):
        load_model(tmp_path / "saved")
    monkeypatch.setenv("FMNIST_WEIGHTS", str(tmp_path / "moved"))
    loaded = load_model(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(tiny.images[:4]), expected)
    assert loaded.weights == model.weights and loaded.config == model.config


def test_the_results_table_says_what_the_weights_were(tmp_path, monkeypatch, resnet18_state):
    import pandas as pd

    monkeypatch.setenv("FMNIST_PROFILE", "cpu")
    file = write("mine.safetensors", resnet18_state, network="resnet18", origin="ImageNet, pruned, 8 bits")
    history = pd.DataFrame({"val_loss": [1.0]}, index=pd.Index([1], name="epoch"))
    facts = {"train_images": 10, "history": history, "metrics": {"test_accuracy": 0.5, "macro_f1": 0.5}}
    for name, source in (("own", file), ("random", None)):
        save_result(name, small(weights=source), seconds={"total": 1.0}, folder=tmp_path / "results", **facts)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip()
        for line in results_table(tmp_path / "results").splitlines()
    }
    assert rows["`own-cpu`"] == "ImageNet, pruned, 8 bits" and rows["`random-cpu`"] == "random"


# Networks that accept and never answer


@pytest.fixture(params=["silent", "trickling"])
def server(request, monkeypatch):
    """Address of a server that accepts every connection and then says nothing, or a byte now and then for ever."""
    monkeypatch.setattr(downloads, "TIMEOUT", 0.6)
    over, listening = threading.Event(), socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve():
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            kept.append(connection)
            if request.param == "trickling":
                threading.Thread(target=trickle, args=(connection,), daemon=True).start()

    def trickle(connection):
        try:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.05):
                connection.sendall(b"x")
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    over.set()
    listening.close()
    for connection in kept:
        connection.close()


def test_weights_give_up_on_a_server_that_never_answers_every_time(server, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(weights, "fetch", download)
    monkeypatch.setitem(weights._URLS, "resnet18", f"{server}/resnet18-f37072fd.pth")
    for _ in range(2):
        with pytest.raises(WeightsUnavailable, match="timed out"):
            find_weights("resnet18")
        assert f"Downloading {server}/resnet18-f37072fd.pth" in capsys.readouterr().out
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_data_give_up_on_a_server_that_never_answers(server, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(idx_files, "ROOT", tmp_path / "project")
    monkeypatch.setattr(idx_files, "search_folders", lambda: [tmp_path / "project" / "data"])
    monkeypatch.setattr(idx_files, "MIRRORS", (f"{server}/", f"{server}/second/"))
    with pytest.raises(data.DataError, match="could not be downloaded") as caught:
        data.load("test")
    assert f"{server}/second/t10k" in str(caught.value) and "Check the connection" in str(caught.value)
    assert str(caught.value).count("timed out") == 2
    assert capsys.readouterr().out.count("gives up after 0.3 s") == 2  # the two share the 0.6 s
    assert [path.name for path in (tmp_path / "project" / "data").iterdir()] == ["weights"]


def test_what_arrives_is_whole_or_refused(tmp_path, monkeypatch, resnet18_state):
    (tmp_path / "server").mkdir()
    file = tmp_path / "server" / "state.pth"
    torch.save(resnet18_state, file)
    published = file.rename(file.with_name(f"resnet18-{file_sha256(file)[:8]}.pth"))
    monkeypatch.setattr(weights, "fetch", download)
    monkeypatch.setitem(weights._URLS, "resnet18", published.as_uri())
    cached = tmp_path / "hub" / "checkpoints" / published.name
    content = published.read_bytes()
    published.write_bytes(content[:-1])
    with pytest.raises(WeightsUnavailable, match="what arrived is another file"):
        find_weights("resnet18")
    assert not cached.exists()
    published.write_bytes(content)
    assert find_weights("resnet18").identity == f"imagenet:{file_sha256(cached)[:12]}"
    with pytest.raises((OSError, HTTPException)):
        download((tmp_path / "server" / "absent").as_uri(), tmp_path / "x")


# Real weights, where they are


def load_real(name: str):
    found = find_weights(name)
    net = get_model(name, weights=None)
    net.load_state_dict(found.state, strict=False)
    return net.eval(), found


@needs_shared
def test_resnet50_recognises_scikit_learns_two_photographs(monkeypatch):
    """Oracle: what the pictures show, a Chinese palace and a dahlia, which ImageNet's categories call a daisy."""
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from torchvision.models import ResNet50_Weights

    monkeypatch.setenv("FMNIST_WEIGHTS", str(SHARED))
    net, found = load_real("resnet50")
    model = build_model("resnet50", image_size=224)
    assert isinstance(net, ResNet) and isinstance(net.layer2[0], Bottleneck)
    for key in ("layer2", "layer3", "layer4"):  # strides as the built model has them
        ours = getattr(model.backbone, key)[0]
        theirs = getattr(net, key)[0]
        assert (ours.conv1.stride, ours.conv2.stride) == ((2, 2), (1, 1))
        theirs.conv1.stride, theirs.conv2.stride = ours.conv1.stride, ours.conv2.stride
    preset = ResNet50_Weights.IMAGENET1K_V1
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    batch = torch.stack([preset.transforms()(picture) for picture in pictures])
    with torch.no_grad():
        top = net(batch).topk(3).indices
        # The whole of our backbone, with the classifier that it dropped.
        pooled = model.backbone(batch).mean((2, 3)) @ found.state["fc.weight"].T + found.state["fc.bias"]
    assert torch.equal(pooled.topk(3).indices, top)
    china, flower = ([preset.meta["categories"][i] for i in row] for row in top)
    assert {"palace", "monastery"} <= set(china) and "daisy" in flower
    assert model.weights == "imagenet:53a83f16cabb" and model.weights_origin.startswith("ImageNet, pruned")


@needs_shared
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_the_other_files_fit_their_networks(monkeypatch, name, tiny):
    monkeypatch.setenv("FMNIST_WEIGHTS", str(SHARED))
    model = small(name)
    net, _ = load_real(name)
    with torch.no_grad():
        x = model.preprocess(tiny.images[:2])
        torch.testing.assert_close(model.backbone(x), net.features(x), rtol=1e-3, atol=1e-4)
    assert model.weights_origin == "ImageNet"


@needs_shared
def test_resnet50_is_saved_cut_and_exported_with_its_strides(monkeypatch, tmp_path, tiny):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    from fmnist_utils.export.onnx import export_onnx

    monkeypatch.setenv("FMNIST_WEIGHTS", str(SHARED))
    model = build_model("resnet50", image_size=64)
    save_model(model, tmp_path / "resnet50")
    loaded = load_model(tmp_path / "resnet50")
    images = tiny.images[:3]
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(loaded(images), expected)
    cut = build_model("resnet50", image_size=64, cut_after="layer2")
    assert cut.backbone.layer2[0].conv1.stride == (2, 2) and cut.weights == model.weights
    session = runtime.InferenceSession(export_onnx(cut, tmp_path / "cut"))
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        assert np.abs(found - cut(images).softmax(1).numpy()).max() <= 1e-4
