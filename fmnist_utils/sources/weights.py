"""Pretrained weights: found on this machine or downloaded, checked, and put into a network. Never random ones.

Used in ``notebooks/03_vgg16_transfer_learning.ipynb`` and ``notebooks/04_resnet50_fine_tuning.ipynb``.
"""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fmnist_utils import ROOT
from fmnist_utils.sources.download import download as fetch
from fmnist_utils.sources.files import file_sha256, replacing

_SHIPPED = {"vgg16": "vgg16_imagenet_features.safetensors"}
_SHIPPED_SHA256 = "608705a5e8e9a7d5d75e2eb4a72185943564b134fca29f49123ae440f73775ed"
#: Where torchvision's own default (``get_model_weights(name).DEFAULT``) is not what we start from.
_URLS = {
    # Simonyan and Zisserman's own convolutions, as shipped, not torchvision's training.
    "vgg16": "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
    # The first of torchvision's two sets: trained with plain cross-entropy, whose features transfer better than those
    # of label smoothing and mixup (Kornblith et al., 2021, arXiv:2010.16402).
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
}
#: What a file's name must end in to be one of your own.
SUFFIXES = (".safetensors", ".pth", ".pt")
#: ``stride_in`` in a file's header: where a ResNet's first block of layer2, layer3 and layer4 halves the map.
_STRIDES = {"first 1x1 convolution": ((2, 2), (1, 1)), "3x3 convolution": ((1, 1), (2, 2))}


class WeightsUnavailable(RuntimeError):
    """Pretrained weights were asked for and are neither on this machine nor downloadable."""


class Pretrained(NamedTuple):
    """Weights of a network and what is known of them.

    ``state``: float32 tensors under torchvision's names. ``identity``: ``imagenet:`` or, for other origins, ``own:``,
    and the first 12 digits of the file's SHA-256. ``origin``: in words, for tables. ``stride_in``: as in the file's
    header. ``official``: the file is the one that :func:`find_weights` would download. ``source``: where it lies.
    """

    state: dict[str, Tensor] | None
    identity: str
    origin: str = "ImageNet"
    stride_in: str | None = None
    official: bool = True
    source: str = "given"


def is_file_name(weights: object) -> bool:
    """Whether ``weights`` names a file: a path, or a text that ends as one of ``SUFFIXES``."""
    return isinstance(weights, Path) or str(weights).lower().endswith(SUFFIXES)


def find_weights(name: str, weights: str | Path = "imagenet", *, download: bool = True, sha256: str = "") -> Pretrained:
    """Weights for any network of torchvision's, as :class:`Pretrained`; never falls back to random ones.

    ``"imagenet"`` looks in ``data/weights/`` (VGG16's 13 convolutions are shipped there), in the folders of the
    environment variable ``FMNIST_WEIGHTS`` and in torch's cache, then downloads: torchvision's ``IMAGENET1K_FEATURES``
    for ``"vgg16"``, ``IMAGENET1K_V1`` for ``"resnet50"``, its default for any other. In the first two a file is found
    by the name it is published under, checked by hash (the digits in that name), or else by its safetensors header,
    whose metadata say ``network`` and an ``origin`` that begins with ImageNet. ``weights="path/to/file"`` takes a file
    of your own, safetensors or a state dict for torch.load; one that is not at that path is looked for by its name in
    the same folders. ``sha256``: first digits of the only file that will do.

    Raises :class:`WeightsUnavailable`, which says where it looked, and ``ValueError`` for a file of your own that is
    damaged, holds more than tensors, or was made for another network.
    """
    is_file = is_file_name(weights)
    url = _URLS.get(name) or default_weights(name).url
    download = download and _digits(url).startswith(sha256[: len(_digits(url))])
    problems: list[str] = []
    for path, expected in _named(Path(weights)) if is_file else _published(name, url, download, problems):
        if not path.is_file():
            problems.append(f"{path} does not exist")
            continue
        digest = file_sha256(path)
        if not digest.startswith(expected):
            problems.append(f"{path} is damaged (SHA-256 {digest[:12]}…, expected {expected[:12]}…): delete it")
        elif not digest.startswith(sha256):
            problems.append(f"{path} holds other weights (SHA-256 {digest[:12]}…) than are needed ({sha256}…)")
        else:
            return _read(path, name, digest, url)
    if is_file:
        raise WeightsUnavailable(
            f"The weights {weights} of {name} were not found:\n- " + "\n- ".join(problems) + "\nGive the path of the "
            "file, or put it into data/weights/ or a folder that the environment variable FMNIST_WEIGHTS names."
        )
    raise WeightsUnavailable(
        f"ImageNet weights of {name} were not found:\n- " + "\n- ".join(problems) + "\nDownload "
        f"{url} where there is a network and put the file into data/weights/ or at {_cached(url)}"
        + (", or restore data/weights/ from the repository" if name in _SHIPPED else "")
        + ". To train from random weights on purpose, pass weights=None."
    )


def default_weights(name: str):
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _folders() -> list[Path]:
    """``data/weights`` and those of FMNIST_WEIGHTS, which may be relative to the current or the project's folder."""
    named = [Path(text).expanduser() for text in os.environ.get("FMNIST_WEIGHTS", "").split(os.pathsep) if text.strip()]
    return list(dict.fromkeys([ROOT / "data" / "weights", *(base / p for p in named for base in (Path.cwd(), ROOT))]))


def _digits(url: str) -> str:
    """First digits of the file's SHA-256, which its published name ends in."""
    return Path(url).stem.rpartition("-")[2]


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _named(path: Path) -> list[tuple[Path, str]]:
    """Where a file of your own may be, with "" for the hash, which is any."""
    path = path.expanduser()
    places = [path, ROOT / path, *(folder / path.name for folder in _folders())]
    return [(place, "") for place in dict.fromkeys(place.absolute() for place in places)]


def _published(name: str, url: str, download: bool, problems: list[str]) -> Iterator[tuple[Path, str]]:
    """Where ImageNet weights may be, with the first digits of the hash they must have; downloads in the end."""
    digits = _digits(url)
    for folder in _folders():
        if name in _SHIPPED and folder == ROOT / "data" / "weights":
            yield folder / _SHIPPED[name], _SHIPPED_SHA256
        yield folder / Path(url).name, digits
        for path in sorted(folder.glob("*.safetensors")):
            try:
                header = _header(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            if header.get("network") == name and header.get("origin", "").lower().startswith("imagenet"):
                yield path, ""
    cached = _cached(url)
    if download and not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with replacing(cached) as temporary:
                fetch(url, temporary)
                if not (digest := file_sha256(temporary)).startswith(digits):
                    raise OSError(f"what arrived is another file: SHA-256 {digest[:12]}…, not {digits}…")
        except (OSError, HTTPException) as error:
            problems.append(f"download from {url} failed ({error})")
    yield cached, digits


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no sound safetensors file ({error}): copy it again.") from error


def _read(path: Path, name: str, digest: str, url: str) -> Pretrained:
    official = digest.startswith((_SHIPPED_SHA256, _digits(url)))
    header = _header(path) if path.suffix.lower() == ".safetensors" else {}
    if header.get("network", name) != name:
        raise ValueError(f"{path} was made for {header['network']}, not for {name}: take the file of this network.")
    state = load_file(path) if path.suffix.lower() == ".safetensors" else _unpickled(path)
    for key, value in state.items():  # in place: torch keeps the file's format version beside the entries
        state[key] = value.float() if value.is_floating_point() else value
    origin = "ImageNet" if official else " ".join(header.get("origin", path.name).split())
    kind = "imagenet" if origin.lower().startswith("imagenet") else "own"
    return Pretrained(state, f"{kind}:{digest[:12]}", origin, header.get("stride_in"), official, str(path))


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that torch.save wrote, also as "state_dict" or "model" of a training's checkpoint."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or holds code, which is never run: write it with torch.save(model.state_dict(), …)."
        ) from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} is no state dict (names and tensors): write it with torch.save(model.state_dict(), …)."
        )
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and of torch.compile
        if all(key.startswith(prefix) for key in state):
            state = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items())
    return state


def load_pretrained(net: nn.Module, name: str, pretrained: Pretrained, classifier: str) -> None:
    """Put ``pretrained`` into ``net``, a network of torchvision's called ``name``, in place of what it holds.

    Its ``classifier`` is an identity by now, and the file's tensors of that name are left out. The
    stride of a ResNet's halving blocks goes where the weights had it (``stride_in``): He et al. (2016,
    arXiv:1512.03385), Caffe and Keras have it in the first 1×1 convolution, torchvision in the 3×3. Raises
    ``ValueError`` for tensors that are missing, surplus or of another shape.
    """
    _place_strides(net, name, pretrained)
    dropped = (f"{classifier}.", "AuxLogits.", "aux1.", "aux2.")  # the last three: in torchvision's own files
    wanted, state = net.state_dict(), OrderedDict(pretrained.state)
    if name.startswith("densenet"):  # published with names that torch no longer allows: norm.1 for norm1
        state = OrderedDict((re.sub(r"(denselayer\d+\.\w+)\.(\d)", r"\1\2", key), v) for key, v in state.items())
    # Some networks ask for the version of the format, which safetensors do not keep; older files lack batch counts.
    state._metadata = getattr(pretrained.state, "_metadata", wanted._metadata)
    for key in filter(lambda key: key.endswith("num_batches_tracked"), wanted):
        state.setdefault(key, torch.tensor(0))
    doubt = f"({pretrained.source}): was the file made for this network?"
    for verb, keys in (("lack", wanted.keys() - state.keys()), ("have", state.keys() - wanted.keys())):
        keys = [key for key in (*wanted, *state) if key in keys and not key.startswith(dropped)]
        if keys:
            listed = ", ".join(dict.fromkeys(keys[:3])) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            surplus = ", which it has not" if verb == "have" else ""
            raise ValueError(f"The weights of {name} {verb} {listed}{surplus} {doubt}")
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            shapes = " instead of ".join("×".join(map(str, t.shape)) or "one number" for t in (state[key], tensor))
            raise ValueError(f"The weights of {name} have {key} of {shapes} {doubt}")
    net.load_state_dict(state, strict=False, assign=True)


def _place_strides(net: nn.Module, name: str, pretrained: Pretrained) -> None:
    from torchvision.models.resnet import Bottleneck

    if pretrained.stride_in is None:
        return
    firsts = [group[0] for key in ("layer2", "layer3", "layer4") if (group := getattr(net, key, None))]
    if pretrained.stride_in not in _STRIDES or not firsts or not all(isinstance(block, Bottleneck) for block in firsts):
        raise ValueError(
            f"{pretrained.source} says stride_in={pretrained.stride_in!r}, which {name} cannot have: it is for ResNets "
            f"of three convolutions a block, and {' or '.join(map(repr, _STRIDES))}."
        )
    for block in firsts:
        block.conv1.stride, block.conv2.stride = _STRIDES[pretrained.stride_in]
