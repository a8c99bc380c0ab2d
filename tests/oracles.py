"""torch, timm and transformers for tests, or a skip that says which is missing; their weights as numpy; photographs."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mim_jax.data import crop_and_resize, open_dataset
from mim_jax.data.crop import CentreSquare, ExampleKey


def oracle(name: str) -> ModuleType:
    """torch, timm or transformers; the test is skipped where it is not installed."""
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass  # transformers does without; timm does not, and is skipped
    except RuntimeError:
        # Its published build does not import beside torch's CPU build, for want of two operators that nothing here calls.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.torchvision_operators = library  # they live as long as this object
    return pytest.importorskip(name, reason=f"{name}, the oracle, is not installed")


def state_of(module: Any) -> dict[str, np.ndarray]:
    """A module's state dict as numpy."""
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def shake(module: Any, seed: int = 0, scale: float = 0.1) -> Any:
    """The module in evaluation mode, with noise on every parameter and random BatchNorm statistics."""
    torch = oracle("torch")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module.eval()


def photographs(size: tuple[int, int]) -> np.ndarray:
    """Centred squares of the embedded photographs, resized: float32 [10, H, W, 3] in [0, 1]."""
    source = open_dataset("photos", "train", crops_per_picture=1)
    pictures = [source[index].image.pixels() for index in range(len(source))]
    squares = [
        crop_and_resize(pixels, CentreSquare().box(*pixels.shape[:2], size, ExampleKey(0, 0, 0)), size)
        for pixels in pictures
    ]
    return np.stack(squares).astype(np.float32) / 255
