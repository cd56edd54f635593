"""Which pixels a prediction rests on: Grad-CAM, by Captum. Explained in notebook 05.

Sits on top of the other modules; needs the extra ``explain``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_utils.models import Classifier, leaves
from fmnist_utils.networks.freezing import in_eval_mode

__all__ = ["grad_cam"]


def grad_cam(model: Classifier, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """Grad-CAM maps, float32 [B, 28, 28] from 0 to 1, of ``uint8 [B, 28, 28]`` images (on the CPU).

    The weight of each filter of the backbone's last activation is the mean gradient of the logit of ``classes`` (int64
    [B]; default: the predicted ones); the weighted sum, cut off below 0, is resized to the image and divided by its
    maximum (Selvaraju et al., 2017, arXiv:1610.02391). A map that is 0 everywhere stays 0. The model is left as it was.
    Explained in notebooks/05_evaluation_and_visualization.ipynb.

    Raises ``ValueError`` for a backbone that gives no feature map, such as ViT.
    """
    from captum.attr import LayerGradCam

    device = next(model.parameters()).device
    target = [layer for layer in leaves(model.backbone) if not isinstance(layer, nn.MaxPool2d)][-1]
    images = images.to(device)
    with in_eval_mode(model), torch.enable_grad():
        if classes is None:
            classes = model(images).argmax(1)
        pixels = model.preprocess(images).detach().requires_grad_()  # or frozen layers would pass no gradient
        after_pixels = nn.Sequential(model.backbone, model.head)
        maps = LayerGradCam(after_pixels, target).attribute(pixels, target=classes.to(device), relu_attributions=True)
    if maps.ndim != 4:
        raise ValueError(
            f"Grad-CAM needs a feature map, but {model.config['name']} gives one vector per image: explain a network "
            "that is a chain of blocks, such as resnet18."
        )
    maps = F.interpolate(maps.detach().cpu(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
