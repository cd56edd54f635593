"""`fmnist_utils.explain` against Grad-CAM worked out with autograd alone."""

import pytest
import torch
import torch.nn.functional as F

from fmnist_utils.explain.grad_cam import grad_cam
from fmnist_utils.models import build_model

pytest.importorskip("captum")


def models_and_activations(small_vgg):
    """(model, the layers up to its last activation, those behind it); VGG16's block has a pooling layer there."""
    vgg = small_vgg()
    block = vgg.backbone.block1
    yield vgg, block[:4], torch.nn.Sequential(block[4], vgg.head)
    cnn = build_model("small_cnn", weights=None)
    yield cnn, cnn.backbone, cnn.head


@pytest.mark.parametrize("number", [0, 1], ids=["vgg16", "small CNN"])
@pytest.mark.parametrize("chosen", [False, True], ids=["predicted classes", "chosen classes"])
def test_maps_are_those_worked_out_with_autograd(small_vgg, tiny, number, chosen):
    model, before, after = list(models_and_activations(small_vgg))[number]
    images = tiny.images[:6]
    classes = torch.tensor([3, 1, 4, 1, 5, 9]) if chosen else model(images).argmax(1)
    activation = before(model.preprocess(images)).detach().requires_grad_()
    logits = after(activation)
    (gradient,) = torch.autograd.grad(logits[torch.arange(6), classes].sum(), activation)
    maps = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).clamp_min(0).detach()
    maps = F.interpolate(maps, (28, 28), mode="bilinear", align_corners=False)[:, 0]
    expected = torch.stack([m / m.max() if m.max() > 0 else m for m in maps])

    found = grad_cam(model, images, classes if chosen else None)
    assert found.shape == (6, 28, 28) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.min() >= 0 and found.max() <= 1 and (found.amax((1, 2)) > 0.999).any()


@pytest.mark.parametrize("training", [False, True])
def test_maps_leave_the_model_as_it_was(small_vgg, tiny, training):
    model = small_vgg(trainable=3).train(training)
    modes = [module.training for module in model.modules()]
    free = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # as in a notebook that predicts
        maps = grad_cam(model, tiny.images[:2])
    assert maps.shape == (2, 28, 28)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == free
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_map_without_evidence_stays_zero(small_vgg, tiny):
    model = small_vgg()
    with torch.no_grad():
        model.head[-1].weight.zero_()
    assert not grad_cam(model, tiny.images[:2]).any()
