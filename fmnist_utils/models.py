"""From raw grey images to logits: pretrained weights, backbone, head, summary, checkpoints.

Every model takes what the dataset holds (``uint8 [B, 28, 28]``), because its first module is
:class:`~fmnist_utils.preprocess.Preprocess`. Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import difflib
import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fmnist_utils import ROOT
from fmnist_utils.data import replacing
from fmnist_utils.preprocess import FASHION_MNIST_STATS, IMAGENET_STATS, VGG_ORIGINAL_STATS, Augment, Preprocess

#: Where each block of torchvision's ``vgg16().features`` ends (with a pooling layer).
VGG16_BLOCKS = {"block1": 5, "block2": 10, "block3": 17, "block4": 24, "block5": 31}
#: Head presets: (filters of a 3×3 convolution or 0, side of the pooled map, hidden widths, normalise the features).
HEADS = {
    "classic": (0, 7, (1024, 512), False),
    "pooled": (0, 4, (256,), True),
    "linear": (0, 1, (), True),
    "conv": (192, 3, (256,), True),
}


# ------------------------------------------------------------------------------------------- pretrained weights


class WeightsUnavailable(RuntimeError):
    """Pretrained weights were asked for and are neither on this machine nor downloadable."""


_VGG16_SHIPPED = "vgg16_imagenet_features.safetensors"
_VGG16_SHIPPED_SHA256 = "608705a5e8e9a7d5d75e2eb4a72185943564b134fca29f49123ae440f73775ed"
_VGG16_URL = "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def find_vgg16_weights(download: bool = True) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of VGG16's 13 convolutions as (float32 state dict of ``features``, identity).

    Looks in ``data/weights/`` (shipped with the project), then torch's cache, then downloads torchvision's
    ``VGG16_Weights.IMAGENET1K_FEATURES``. Each candidate is checked by hash. The identity is ``imagenet:`` and the
    first 12 digits of the file's SHA-256. Raises :class:`WeightsUnavailable`; never falls back to random weights.
    """
    shipped = ROOT / "data" / "weights" / _VGG16_SHIPPED
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(_VGG16_URL).name
    problems = []
    for path, expected in ((shipped, _VGG16_SHIPPED_SHA256), (cached, "88682ab5")):
        if path == cached and not cached.is_file() and download:
            try:
                torch.hub.load_state_dict_from_url(_VGG16_URL, progress=False, check_hash=True, map_location="cpu")
            except (OSError, RuntimeError) as error:
                problems.append(f"download from {_VGG16_URL} failed ({error})")
        if not path.is_file():
            problems.append(f"{path} does not exist")
            continue
        digest = file_sha256(path)
        if not digest.startswith(expected):
            problems.append(f"{path} is damaged (SHA-256 {digest[:12]}…, expected {expected[:12]}…): delete it")
            continue
        state = load_file(path) if path == shipped else torch.load(path, map_location="cpu", weights_only=True)
        features = {k.removeprefix("features."): v.float() for k, v in state.items() if k.startswith("features.")}
        return features, f"imagenet:{digest[:12]}"
    raise WeightsUnavailable(
        "ImageNet weights of VGG16 were not found:\n- " + "\n- ".join(problems) + "\nRestore data/weights/ from the "
        f"repository, or download {_VGG16_URL} elsewhere and put it at {cached}. To train from random weights on "
        "purpose, pass weights=None."
    )


# ------------------------------------------------------------------------------------------------------- models


class _FrozenNormMixin(nn.Module):
    """Training mode, except that frozen BatchNorm keeps its ImageNet statistics (it stays in eval mode)."""

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and any(not p.requires_grad for p in module.parameters()):
                module.eval()
        return self


class Layers(_FrozenNormMixin, nn.Sequential):
    """A part of a :class:`Classifier`, as :meth:`Classifier.split` returns it."""


class Classifier(_FrozenNormMixin):
    """``preprocess -> backbone -> head``: ``uint8 [B, 28, 28]`` in, logits ``float32 [B, 10]`` out.

    ``config`` holds the arguments of :func:`build_model`, ``weights`` the identity of the pretrained weights or
    ``"none"``. Explained in notebooks/03_vgg16_transfer_learning.ipynb.
    """

    def __init__(
        self, preprocess: Preprocess, backbone: nn.Sequential, head: nn.Sequential, config: dict, weights: str
    ):
        super().__init__()
        self.preprocess, self.backbone, self.head = preprocess, backbone, head
        self.config, self.weights = config, weights

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(self.preprocess(images)))

    def split(self) -> tuple[Layers, Layers]:
        """(frozen prefix, trainable rest); applied one after the other they equal the model and share its layers.

        The prefix starts with the preprocessing and never holds a trainable parameter or a random layer. Among the
        allowed borders it takes the one with the smallest activation, because that is what a cache has to store.
        """
        layers = [self.preprocess, *_leaves(self.backbone), *self.head]
        fixed = 1
        while fixed < len(layers) and not _changes_in_training(layers[fixed]):
            fixed += 1
        last_frozen = max((i for i in range(1, fixed) if any(True for _ in layers[i].parameters())), default=0)
        side = self.preprocess.image_size
        x = self.preprocess.offset.expand(1, -1, side, side)  # as preprocessing an image would make, undisturbed
        sizes = {0: x.numel()}
        with torch.no_grad():
            for i in range(1, fixed):
                x = layers[i](x)
                sizes[i] = x.numel()
        border = min(range(last_frozen, fixed), key=lambda i: (sizes[i], -i)) + 1
        return Layers(*layers[:border]), Layers(*layers[border:])


def _leaves(module: nn.Module) -> list[nn.Module]:
    """Layers of nested ``nn.Sequential`` containers, in the order in which they run."""
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in _leaves(child)]
    return [module]


def _changes_in_training(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters()) or any(
        isinstance(m, _DropoutNd) or (isinstance(m, _BatchNorm) and not m.affine) for m in layer.modules()
    )


class Pool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling, on the CPU for Apple GPUs, whose backend lacks sizes that do not divide evenly."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cpu()).to(x.device) if x.device.type == "mps" else super().forward(x)


def make_head(
    channels: int, conv: int, pool: int, hidden: tuple[int, ...], normalise: bool, dropout: float
) -> nn.Sequential:
    """From a feature map [B, channels, H, W] to logits [B, 10]; the arguments are those of a row in ``HEADS``.

    An optional convolution with max pooling, average pooling to ``pool``×``pool``, and fully connected layers with ReLU
    and dropout. ``normalise`` puts a batch normalisation in front: activations of the original VGG16 reach thousands,
    and unscaled the first loss would be far above ln 10.
    """
    layers: list[nn.Module] = []
    if conv:
        layers += [nn.BatchNorm2d(channels)] if normalise else []
        layers += [
            nn.Conv2d(channels, conv, 3, padding=1, bias=False),
            nn.BatchNorm2d(conv),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    width = (conv or channels) * pool * pool
    layers += [Pool(pool), nn.Flatten()]
    if conv:
        layers.append(nn.Dropout(dropout))
    elif normalise:
        layers.append(nn.BatchNorm1d(width))
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _vgg16_backbone(weights: str | None, cut_after: str) -> tuple[nn.Sequential, int, str, tuple]:
    from torchvision.models import vgg16

    with torch.device("meta"):  # the 124 million parameters of the original classifier are never allocated
        features = vgg16(weights=None, init_weights=False).features
    if weights is None:
        features.to_empty(device="cpu")
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        identity, stats = "none", IMAGENET_STATS
    else:
        state, identity = find_vgg16_weights()
        features.load_state_dict(state, assign=True)
        stats = VGG_ORIGINAL_STATS
    blocks, start = OrderedDict(), 0
    for name, stop in VGG16_BLOCKS.items():
        blocks[name] = features[start:stop]
        start = stop
        if name == cut_after:
            break
    channels = [layer for layer in _leaves(nn.Sequential(blocks)) if isinstance(layer, nn.Conv2d)][-1].out_channels
    return nn.Sequential(blocks), channels, identity, stats


def _small_cnn_backbone() -> nn.Sequential:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    return nn.Sequential(OrderedDict(block1=block(1, 32), block2=block(32, 64), block3=block(64, 128)))


def build_model(
    name: str,
    *,
    weights: str | None = "imagenet",
    head: str | tuple[int, int, tuple[int, ...], bool] | None = None,
    cut_after: str = "block5",
    trainable: str | int | None = None,
    image_size: int | None = None,
    dropout: float = 0.5,
    augment: Augment | dict | None = None,
    seed: int = 0,
) -> Classifier:
    """Build a :class:`Classifier` in eval mode; explained in notebooks/03_vgg16_transfer_learning.ipynb.

    ``name``: ``"vgg16"`` (Simonyan & Zisserman, 2015, arXiv:1409.1556) or ``"small_cnn"`` (three blocks, from scratch).
    ``weights``: ``"imagenet"``, or ``None`` for random ones (a choice, never a fallback).
    ``head``: a key of ``HEADS`` or such a row of your own; default ``classic`` for VGG16 (with pool 7:
    25088 -> 1024 -> 512 -> 10) and ``linear`` for the small CNN.
    ``cut_after``: last VGG16 block that is kept, ``"block1"`` … ``"block5"``.
    ``trainable``: ``"head"``, ``"all"``, or the number of backbone layers, counted from its output, to train with the
    head; default ``"head"`` for pretrained and ``"all"`` for random weights.
    ``image_size``: side in pixels the network sees (default 56 for VGG16, 28 for the small CNN). ``seed``: for every
    random initial value, whatever was drawn before.

    Raises ``ValueError`` for unknown names and :class:`WeightsUnavailable` for weights that cannot be had.
    """
    augment = Augment(**augment) if isinstance(augment, dict) else augment
    _check_name("model", name, ("vgg16", "small_cnn"))
    _check_name("weights", weights, ("imagenet", None))
    _check_name("cut_after", cut_after, tuple(VGG16_BLOCKS))
    if head is None:
        head = "classic" if name == "vgg16" else "linear"
    if isinstance(head, str):
        _check_name("head", head, tuple(HEADS))
    if trainable is None:
        trainable = "head" if weights else "all"
    config = {
        "name": name,
        "weights": weights,
        "head": head,
        "cut_after": cut_after,
        "trainable": trainable,
        "image_size": image_size or (56 if name == "vgg16" else 28),
        "dropout": dropout,
        "augment": asdict(augment) if augment else None,
        "seed": seed,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "vgg16":
            backbone, channels, identity, stats = _vgg16_backbone(weights, cut_after)
        elif weights is None:
            backbone, channels, identity, stats = _small_cnn_backbone(), 128, "none", FASHION_MNIST_STATS
        else:
            raise ValueError("small_cnn has no pretrained weights: pass weights=None to train it from scratch.")
        conv, pool, hidden, normalise = HEADS[head] if isinstance(head, str) else head
        top = make_head(channels, conv, pool, tuple(hidden), normalise, dropout)
    model = Classifier(Preprocess(config["image_size"], stats, augment), backbone, top, config, identity)
    _freeze(model.backbone, trainable)
    return model.eval()


def _check_name(what: str, name: str | None, known: tuple) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.3)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{what}={name!r} is not known.{hint} Choose one of {', '.join(map(repr, known))}.")


def _freeze(backbone: nn.Sequential, trainable: str | int) -> None:
    leaves = _leaves(backbone)
    if isinstance(trainable, str):
        _check_name("trainable", trainable, ("head", "all"))
        trainable = len(leaves) if trainable == "all" else 0
    if not 0 <= trainable <= len(leaves):
        raise ValueError(f"trainable={trainable}: the backbone has {len(leaves)} layers.")
    for layer in leaves[: len(leaves) - trainable]:
        layer.requires_grad_(False)


def summary(model: Classifier) -> pd.DataFrame:
    """One row per block: output shape for one image, parameters, trainable parameters, MFLOPs per image.

    A multiplication and an addition count as two FLOPs; convolutions and matrix products are counted (by torch's own
    counter), the rest is negligible.
    """
    from torch.utils.flop_counter import FlopCounterMode

    rows, x = {}, torch.zeros(1, 28, 28, dtype=torch.uint8, device=model.preprocess.scale.device)
    stages = {"preprocess": model.preprocess, **dict(model.backbone.named_children()), "head": model.head}
    mode = model.training
    model.eval()
    for name, stage in stages.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = stage(x)
        parameters = list(stage.parameters())
        rows[name] = {
            "output": "×".join(map(str, x.shape[1:])),
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "MFLOPs": counter.get_total_flops() / 1e6,
        }
    model.train(mode)
    table = pd.DataFrame(rows).T.astype({"parameters": int, "trainable": int, "MFLOPs": float})
    table.loc["total"] = ["", table.parameters.sum(), table.trainable.sum(), table.MFLOPs.sum()]
    return table


# -------------------------------------------------------------------------------------------------- checkpoints


def save_model(model: Classifier, path: str | Path, **card) -> Path:
    """Write ``<path>.safetensors`` (what training changed) and ``<path>.json`` (how to rebuild the rest, and ``card``).

    Pretrained weights that stayed frozen are not stored but named by hash, so a head takes a few hundred KB. Explained
    in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file, text = path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")
    # Both are complete before either replaces an earlier file, because they only load together.
    with replacing(file) as temporary, replacing(text) as temporary_text:
        save_file(changed_state(model), temporary)
        card = {**card, "model": model.config, "weights": model.weights, "sha256": file_sha256(temporary)}
        temporary_text.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8", newline="\n")
    return file


def load_model(path: str | Path) -> Classifier:
    """Rebuild a model written by :func:`save_model`, in eval mode.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` where a file is damaged or the pretrained weights
    found here are not those the model was trained on, and :class:`WeightsUnavailable` where there are none.
    """
    path = Path(path)
    file, text = path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")
    try:
        card = json.loads(text.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{text} is damaged ({error}): copy it and {file.name} again.") from error
    if (digest := file_sha256(file)) != card["sha256"]:
        raise ValueError(f"{file} does not belong to {text.name} (SHA-256 {digest[:12]}…): copy both files again.")
    model = build_model(**card["model"])
    if model.weights != card["weights"]:
        raise ValueError(
            f"{text.name} was trained on {card['weights']}, but the weights found here are {model.weights}. "
            "Restore data/weights/ from the repository."
        )
    state = load_file(file)
    missing = changed_state(model).keys() ^ state.keys()
    if missing:
        raise ValueError(f"{file} does not fit its model: {', '.join(sorted(missing))}.")
    model.load_state_dict(state, strict=False)
    return model.eval()


def changed_state(model: Classifier) -> dict[str, Tensor]:
    """The part of the state dict that training can change: all of it unless pretrained layers are frozen."""
    frozen = set()
    if model.weights != "none":
        for name, module in model.named_modules():
            own = list(module.named_parameters(recurse=False))
            if own and not any(p.requires_grad for _, p in own):
                frozen |= {f"{name}.{key}" for key, _ in [*own, *module.named_buffers(recurse=False)]}
    return {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in frozen}
