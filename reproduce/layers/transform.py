"""What a data layer does to each item: `transform_param`.

Follows `src/caffe/data_transformer.cpp` of BVLC/caffe at 9b891540: crop, mirror, mean, scale, in planes
C x H x W. A mean image has the size of the whole item and is cropped with it. Cropping is random in TRAIN
and central in TEST; mirroring, where asked for, is random in both. Departure: chance comes from PyTorch's
generator, so `torch.manual_seed` fixes it.
"""

from __future__ import annotations

import numpy as np
import torch

from caffe_weights.caffe_pb2 import TransformationParameter
from caffe_weights.errors import NetError
from caffe_weights.mean import read_mean
from surgery.geometry import dims


class Transformer:
    """`transform_param` of the layer `where` in a phase."""

    def __init__(self, param: TransformationParameter, phase: str, where: str) -> None:
        if param.mean_file and param.mean_value:
            raise NetError(where, "both mean_file and mean_value", "one of them", "remove the other")
        self.param, self.phase, self.where = param, phase, where
        self.crop = param.crop_size
        self.mean: np.ndarray | None = None  # read when the first item comes

    def shape(self, item: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (C, H, W) of an item of such a shape afterwards. NetError where crop or mean do not fit."""
        channels, height, width = item
        if self.crop > min(height, width):
            raise NetError(
                self.where, f"crop_size {self.crop} of {height}x{width}", "at most the item's size"
            )
        values = len(self.param.mean_value)
        if values not in (0, 1, channels):
            raise NetError(self.where, f"{values} values of mean_value", f"1 or {channels}, one a channel")
        if self.param.mean_file and self._mean().shape != item:
            raise NetError(
                self.where,
                f"a mean image of {dims(self._mean().shape)} in {self.param.mean_file}",
                f"{dims(item)}, as the items are before cropping",
                "set mean_file",
            )
        return (channels, self.crop, self.crop) if self.crop else item

    def __call__(self, item: np.ndarray) -> np.ndarray:
        """An item (C, H, W) of any dtype, transformed, float32."""
        self.shape(item.shape)
        rows, columns = (self._window(n) for n in item.shape[1:])
        flip = self.param.mirror and _below(2)
        values = item[:, rows, columns].astype(np.float32)
        if self.param.mean_file:
            values -= self._mean()[:, rows, columns]
        elif self.param.mean_value:
            values -= np.array(self.param.mean_value, np.float32).reshape(-1, 1, 1)
        values *= np.float32(self.param.scale)
        return values[:, :, ::-1] if flip else values

    def _window(self, size: int) -> slice:
        if not self.crop:
            return slice(0, size)
        spare = size - self.crop
        start = _below(spare + 1) if self.phase == "TRAIN" else spare // 2
        return slice(start, start + self.crop)

    def _mean(self) -> np.ndarray:
        if self.mean is None:
            self.mean = read_mean(self.param.mean_file)
        return self.mean


def _below(limit: int) -> int:
    return int(torch.randint(limit, ()).item())
