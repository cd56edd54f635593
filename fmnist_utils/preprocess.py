"""The first module of every model: resize, grey -> RGB, normalise, augment, on whole batches and on the device.

Explained in ``notebooks/02_preprocessing.ipynb``.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Augment", "FASHION_MNIST_STATS", "IMAGENET_STATS", "Preprocess", "VGG_ORIGINAL_STATS"]

#: Per-channel mean and standard deviation of ImageNet on a 0-1 scale, the usual choice for torchvision's weights.
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: What the original VGG16 was trained with: 0-255 values minus the mean (Simonyan & Zisserman, 2015).
VGG_ORIGINAL_STATS = ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))
#: Mean and standard deviation of the Fashion-MNIST training pixels (measured in notebook 01), for one grey channel.
FASHION_MNIST_STATS = ((0.2860,), (0.3530,))


@dataclass(frozen=True)
class Augment:
    """Random changes of a training image, drawn independently per image.

    ``flip`` and ``erasing`` are probabilities, ``rotation`` is in degrees (drawn from ±rotation), ``zoom`` is a
    fraction (scale from 1 ± zoom). ``shift`` is a fraction, too, when it is a float (from ± that part of the side,
    between pixels as well), and a number of whole pixels of the 28-pixel image when it is an int: ``shift=4`` moves by
    one of -4, …, 4 pixels in each direction, equally often, and blurs nothing. What comes in is black.
    """

    flip: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float | int = 0.0
    erasing: float = 0.0


class Preprocess(nn.Module):
    """``uint8 [B, 28, 28]`` -> resized, normalised ``float32 [B, C, S, S]`` on the device of the input.

    C is the number of entries of ``mean`` (3 repeats the grey channel to RGB). Without augmentation it agrees with
    torchvision's PIL pipeline (Resize, Grayscale(3), ToTensor, Normalize) within one grey level, because PIL rounds
    resized pixels to whole levels. ``augment`` works in training mode only; flip, rotation, zoom, shift and resize are
    one affine grid and so one bilinear resampling (Jaderberg et al., 2015, arXiv:1506.02025). A shift by whole pixels
    picks pixels instead, as does the flip with it: at 28 pixels, without rotation and zoom, none changes its value.
    Erasing follows Zhong et al. (2017, arXiv:1708.04896) with black, the data's background. Random numbers are drawn on
    the device, which need not wait for any. Explained in notebooks/02_preprocessing.ipynb.

    Raises ``ValueError`` for anything but ``uint8 [B, H, W]``.
    """

    scale: Tensor
    offset: Tensor

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
        changed = self.training and self.augment is not None
        grey = self._change(grey, self.augment) if changed else self._resize(grey)
        # One multiply-add broadcasts the grey channel to RGB and normalises it.
        return torch.addcmul(self.offset, grey, self.scale)

    def _resize(self, grey: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        return F.interpolate(grey, size, mode="bilinear", antialias=self.image_size < grey.shape[-1])

    def _change(self, grey: Tensor, augment: Augment) -> Tensor:
        whole = isinstance(augment.shift, int)
        if whole:
            grey = self._pick(grey, augment.flip, augment.shift)
        if whole and not (augment.rotation or augment.zoom):
            grey = self._resize(grey)
        else:
            grey = self._resample(grey, replace(augment, flip=0.0, shift=0.0) if whole else augment)
        return self._erase(grey, augment.erasing) if augment.erasing else grey

    @staticmethod
    def _pick(grey: Tensor, flip: float, shift: int) -> Tensor:
        """Mirrored with probability ``flip``, then moved by up to ``shift`` whole pixels down or up, right or left."""
        count, _, height, width = grey.shape
        down, right = torch.randint(-shift, shift + 1, (2, count, 1), device=grey.device)
        rows = torch.arange(height, device=grey.device) - down
        columns = torch.arange(width, device=grey.device) - right
        mirrored = torch.rand(count, 1, device=grey.device) < flip
        columns = torch.where(mirrored, width - 1 - columns, columns)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        image = torch.arange(count, device=grey.device)[:, None, None]
        picked = grey[image, 0, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
        return (picked * inside)[:, None]

    def _resample(self, grey: Tensor, augment: Augment) -> Tensor:
        count, size, device = len(grey), self.image_size, grey.device

        def uniform(limit: float) -> Tensor:
            return (torch.rand(count, device=device) * 2 - 1) * limit

        angle = torch.deg2rad(uniform(augment.rotation))
        zoom = 1 / (1 + uniform(augment.zoom))
        mirror = 1 - 2 * (torch.rand(count, device=device) < augment.flip).float()
        # Rows map output to input coordinates in [-1, 1], hence the inverse zoom; the mirror acts on the output's x.
        x = torch.stack([angle.cos() * zoom * mirror, -angle.sin() * zoom, uniform(2 * augment.shift)], 1)
        y = torch.stack([angle.sin() * zoom * mirror, angle.cos() * zoom, uniform(2 * augment.shift)], 1)
        grid = F.affine_grid(torch.stack([x, y], 1), [count, 1, size, size], align_corners=False)
        # Staying within the outermost pixel centres reproduces F.interpolate for the identity (and, unlike border
        # padding, works on Apple GPUs); what lies outside the image becomes black.
        inside, edge = (grid.abs() <= 1).all(-1)[:, None], 1 - 1 / grey.shape[-1]
        return F.grid_sample(grey, grid.clamp(-edge, edge), align_corners=False) * inside

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
