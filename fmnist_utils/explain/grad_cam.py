"""Which pixels a prediction rests on: Grad-CAM, by Captum. Explained in notebook 05.

Sits on top of the other modules; needs the extra ``explain``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmnist_utils.models import Classifier, leaves
from fmnist_utils.networks.freezing import in_eval_mode

__all__ = ["at_last_activation", "grad_cam"]


def at_last_activation(model: Classifier) -> tuple[nn.Sequential, nn.Sequential]:
    """(what the model does up to the last activation of its backbone, what follows: poolings and, last, the head)."""
    layers = [model.preprocess, *leaves(model.backbone)]
    border = 1 + max(i for i, layer in enumerate(layers) if not isinstance(layer, nn.MaxPool2d))
    return nn.Sequential(*layers[:border]), nn.Sequential(*layers[border:], model.head)


def grad_cam(
    model: Classifier, images: Tensor, classes: Tensor | None = None, activation: Tensor | None = None
) -> Tensor:
    """Grad-CAM maps, float32 [B, 28, 28] from 0 to 1, of ``uint8 [B, 28, 28]`` images (on the CPU).

    The weight of each filter of the backbone's last activation is the mean gradient of the logit of ``classes`` (int64
    [B]; default: the predicted ones); the weighted sum, cut off below 0, is resized to the image and divided by its
    maximum (Selvaraju et al., 2017, arXiv:1610.02391). A map that is 0 everywhere stays 0. ``activation`` is what the
    first part of :func:`at_last_activation` makes of the images, where it is known: the network does not run again.
    The model is left as it was. Explained in notebooks/05_evaluation_and_visualization.ipynb.

    Raises ``ValueError`` for a backbone that gives no feature map, such as ViT.
    """
    from captum.attr import LayerGradCam

    before, after = at_last_activation(model)
    with in_eval_mode(model):
        if activation is None:
            with torch.no_grad():
                activation = before(images.to(next(model.parameters()).device))
        if activation.ndim != 4:
            raise ValueError(
                f"Grad-CAM needs a feature map, but {model.config['name']} gives one vector per image: explain a "
                "network that is a chain of blocks, such as resnet18."
            )
        if classes is None:
            with torch.no_grad():
                classes = after(activation).argmax(1)
        # No gradient is needed behind the activation, and no hook on the model: others may use it at the same time.
        seen = nn.Identity()
        with torch.enable_grad():
            explain = LayerGradCam(nn.Sequential(seen, after), seen)
            maps = explain.attribute(
                activation.detach().requires_grad_(), classes.to(activation.device), relu_attributions=True
            )
    maps = F.interpolate(maps.detach().cpu(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
