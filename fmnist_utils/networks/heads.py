"""Heads: from a feature map to ten logits. Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``."""

from torch import Tensor, nn

#: Head presets: (filters of a 3×3 convolution or 0, side of the pooled map, hidden widths, normalise the features).
HEADS = {
    "classic": (0, 7, (1024, 512), False),
    "pooled": (0, 4, (256,), True),
    "linear": (0, 1, (), True),
    "conv": (192, 3, (256,), True),
    "gap-256": (0, 1, (256,), True),
    "gap-256-128": (0, 1, (256, 128), True),
}


class Pool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling, on the CPU for Apple GPUs, whose backend lacks sizes that do not divide evenly."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cpu()).to(x.device) if x.device.type == "mps" else super().forward(x)


def make_head(
    channels: int, conv: int, pool: int, hidden: tuple[int, ...], normalise: bool, dropout: float
) -> nn.Sequential:
    """From a feature map [B, channels, H, W] to logits [B, 10]; the arguments are those of a row in ``HEADS``.

    An optional convolution with max pooling, average pooling to ``pool``×``pool`` (0: none, for features
    [B, channels]), and fully connected layers with ReLU and dropout. ``normalise`` puts a batch normalisation in front:
    activations of the original VGG16 reach thousands, and unscaled the first loss would be far above ln 10.
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
    width = (conv or channels) * max(pool, 1) ** 2
    layers += [Pool(pool)] if pool else []
    layers += [nn.Flatten()]
    if conv:
        layers.append(nn.Dropout(dropout))
    elif normalise:
        layers.append(nn.BatchNorm1d(width))
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def head_for(head, channels: int, sides: list[int], dropout: float, name: str, cut_after: str, image_size: int):
    """The ``head`` (a key of ``HEADS`` or such a row) for what a backbone gives: ``channels``, and ``sides`` of a map.

    Raises ``ValueError`` where a head with a convolution and its pooling has no map of 2×2 or more to work on; name,
    cut and image size of the backbone are for that message.
    """
    conv, pool, hidden, normalise = HEADS[head] if isinstance(head, str) else head
    if conv and not sides:
        raise ValueError(f"head={head!r} needs a feature map, but {name} gives a vector: choose 'linear' or 'gap-256'.")
    if conv and min(sides) < 2:
        raise ValueError(
            f"head={head!r} halves its feature map, but {name} cut after {cut_after} leaves {sides[0]}×{sides[1]} "
            f"of {image_size}×{image_size} pixels: take a larger image_size, an earlier cut_after, or another head."
        )
    return make_head(channels, conv, pool if sides else 0, tuple(hidden), normalise, dropout)
