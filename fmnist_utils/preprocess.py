"""The first module of every model: resize, grey -> RGB, normalise, augment, on whole batches and on the device.

Explained in ``notebooks/02_preprocessing.ipynb``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Per-channel mean and standard deviation of ImageNet on a 0-1 scale, the usual choice for torchvision's weights.
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: What the original VGG16 was trained with: 0-255 values minus the mean (Simonyan & Zisserman, 2015).
VGG_ORIGINAL_STATS = ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))
#: Mean and standard deviation of the Fashion-MNIST training pixels (measured in notebook 01), for one grey channel.
FASHION_MNIST_STATS = ((0.2860,), (0.3530,))


@dataclass(frozen=True)
class Augment:
    """Random changes of a training image, drawn independently per image.

    ``flip`` and ``erasing`` are probabilities, ``rotation`` is in degrees (drawn from ±rotation), ``zoom`` and
    ``shift`` are fractions (scale from 1 ± zoom; shift from ± that part of the side).
    """

    flip: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    erasing: float = 0.0


class Preprocess(nn.Module):
    """``uint8 [B, 28, 28]`` -> resized, normalised ``float32 [B, C, S, S]`` on the device of the input.

    C is the number of entries of ``mean`` (3 repeats the grey channel to RGB). Without augmentation it agrees with
    torchvision's PIL pipeline (Resize, Grayscale(3), ToTensor, Normalize) within one grey level, because PIL rounds
    resized pixels to whole levels. ``augment`` works in training mode only; flip, rotation, zoom, shift and resize are
    one affine grid and so one bilinear resampling (Jaderberg et al., 2015, arXiv:1506.02025); erasing follows Zhong et
    al. (2017, arXiv:1708.04896) with black, the data's background. Random numbers are drawn on the device, which need
    not wait for any. Explained in notebooks/02_preprocessing.ipynb.

    Raises ``ValueError`` for anything but ``uint8 [B, H, W]``.
    """

    def __init__(self, image_size: int, stats=IMAGENET_STATS, augment: Augment | None = None) -> None:
        super().__init__()
        self.image_size, self.augment = image_size, augment
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in stats)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 3:
            raise ValueError(
                f"Preprocess takes uint8 images [B, H, W], got {images.dtype} {list(images.shape)}. Pass the dataset's "
                "images as they are, and images[None] for a single one."
            )
        grey = images[:, None].float()
        if self.training and self.augment is not None:
            grey = self._resample(grey, self.augment)
        else:
            size = (self.image_size, self.image_size)
            grey = F.interpolate(grey, size, mode="bilinear", antialias=self.image_size < images.shape[-1])
        # One multiply-add broadcasts the grey channel to RGB and normalises it.
        return torch.addcmul(self.offset, grey, self.scale)

    def _resample(self, grey: Tensor, augment: Augment) -> Tensor:
        count, size, device = len(grey), self.image_size, grey.device

        def uniform(limit: float) -> Tensor:
            return (torch.rand(count, device=device) * 2 - 1) * limit

        angle = torch.deg2rad(uniform(augment.rotation))
        zoom = 1 / (1 + uniform(augment.zoom))
        mirror = 1 - 2 * (torch.rand(count, device=device) < augment.flip).float()
        # Rows map output to input coordinates in [-1, 1], hence the inverse zoom; the mirror acts on the output's x.
        matrix = torch.stack(
            [
                torch.stack([angle.cos() * zoom * mirror, -angle.sin() * zoom, uniform(2 * augment.shift)], 1),
                torch.stack([angle.sin() * zoom * mirror, angle.cos() * zoom, uniform(2 * augment.shift)], 1),
            ],
            1,
        )
        grid = F.affine_grid(matrix, (count, 1, size, size), align_corners=False)
        # Staying within the outermost pixel centres reproduces F.interpolate for the identity (and, unlike border
        # padding, works on Apple GPUs); what lies outside the image becomes black.
        inside, edge = (grid.abs() <= 1).all(-1)[:, None], 1 - 1 / grey.shape[-1]
        grey = F.grid_sample(grey, grid.clamp(-edge, edge), align_corners=False) * inside
        return self._erase(grey, augment.erasing) if augment.erasing else grey

    @staticmethod
    def _erase(grey: Tensor, probability: float) -> Tensor:
        count, size, device = len(grey), grey.shape[-1], grey.device
        share, shape, row, column, hit = torch.rand(5, count, device=device)
        area, ratio = 0.02 + 0.18 * share, torch.exp((shape * 2 - 1) * 1.2)
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1)
        corner = torch.stack([row, column], 1) * (1 - sides)
        hit = hit[:, None] < probability
        start, stop = (torch.where(hit, v, -1.0)[..., None] for v in (corner, corner + sides))
        position = (torch.arange(size, device=device) + 0.5) / size
        covered = (position >= start) & (position < stop)  # [B, 2, S]: rows, columns
        return grey.masked_fill((covered[:, 0, :, None] & covered[:, 1, None, :])[:, None], 0.0)
