"""PyTorch checkpoints: a state dict, read with `weights_only` so that nothing in it is executed.

The only module of this floor that uses torch, and only when it is called.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from caffe_weights.errors import FormatError
from caffe_weights.files import open_input

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The float tensors of a `.pt` or `.pth` by name, in order. A dict around the state dict is looked into.

    float16 and bfloat16 are widened to float32. FormatError where the file is no state dict of float tensors.
    """
    where = str(path)
    state = _load(path, where)
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise FormatError(where, f"a checkpoint of {type(state).__name__}", "a state dict",
                          "save model.state_dict()")  # fmt: skip
    return {str(name): _array(tensor, f"{where}: {name!r}") for name, tensor in state.items()}


def write_torch(tensors: Mapping[str, np.ndarray], out: IO[bytes]) -> None:
    """Save `tensors` as a state dict that `torch.load(..., weights_only=True)` reads."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.save({name: torch.from_numpy(np.asarray(a, order="C")) for name, a in tensors.items()}, out)


def _load(path: str | os.PathLike[str], where: str) -> Any:
    import torch

    with open_input(path) as file:
        mappable = file.read(4) == b"PK\x03\x04"  # else a pickle of before torch 1.6
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; what cannot be read is an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError:
        do = "save model.state_dict(); nothing else is loaded, since it could run code"
        raise FormatError(where, "a checkpoint of more than tensors", "a state dict", do) from None
    except Exception as error:  # torch raises whatever the broken part of the file leads to
        detail = str(error).split("\n")[0][:120] or type(error).__name__
        raise FormatError(where, f"no torch checkpoint ({detail})", do="copy it again") from None


def _array(tensor: object, where: str) -> np.ndarray:
    import torch

    if (
        not isinstance(tensor, torch.Tensor)
        or not tensor.is_floating_point()
        or tensor.layout != torch.strided
        or tensor.is_meta
    ):
        raise FormatError(where, _describe(tensor), "a tensor of float32 or float64", "drop it from the file")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise FormatError(where, f"shape {tuple(tensor.shape)} over fewer stored values", "all values stored")
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float64):
        raise FormatError(where, _describe(tensor), "a tensor of float32 or float64", "convert it first")
    return tensor.detach().resolve_neg().contiguous().numpy()


def _describe(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    without = " without values" if getattr(value, "is_meta", False) else ""
    return f"a {type(value).__name__}" + (f" of {dtype}" if dtype is not None else "") + without
