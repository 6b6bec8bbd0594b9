"""Caffe's HDF5 models: `/data/<layer>/<blob index>`, one group a layer.

Follows `Net::ToHDF5` and `CopyTrainedLayersFromHDF5` (net.cpp at 9b891540). A layer name with '/' is a path
of groups in HDF5: Caffe fails to write it (BVLC/caffe#4267), so it is refused here too; where a file has
nested groups all the same, the layer's name is the path. A shared parameter is stored by its owner only.

Caffe's groups have no order but the alphabet's. Ours record theirs, which Caffe does not mind, so that
layers come back as they went in. Datasets are views of the file; links out of the file are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import h5py
import numpy as np

from caffe_weights.errors import FormatError, WeightsError
from caffe_weights.files import open_input
from caffe_weights.mapped import MappedFile, open_mapped
from caffe_weights.weights import ABSENT, is_absent

MOST_INFLATED_BYTES = 128 << 20  # what compressed datasets may hold beyond the size of the file
MOST_DEPTH = 16
GROUP_BYTES, DATASET_BYTES = 4096, 1024  # more than HDF5 adds to the values


def read_hdf5(path: str | os.PathLike[str]) -> dict[str, list[np.ndarray]]:
    """Blobs by layer name; float32 or float64, views where stored in one piece. FormatError if malformed."""
    where = str(path)
    open_input(path).close()
    mapped = open_mapped(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            data = file.get("data", getlink=True)
            if (
                data is None
                or not isinstance(data, h5py.HardLink)
                or not isinstance(file["data"], h5py.Group)
            ):
                raise FormatError(where, "no group /data", "an HDF5 model of Caffe")
            budget = [len(mapped) + MOST_INFLATED_BYTES]
            return {
                name: read_blobs(group, f"{where}: layer {name!r}", mapped, budget)
                for name, group in _layer_groups(file["data"], "", where, 0)
            }
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        detail = str(error).split("\n")[0]
        raise FormatError(where, f"a broken HDF5 file ({detail})", do="copy it again") from None


def write_hdf5(
    weights: Mapping[str, Sequence[np.ndarray]], path: str | os.PathLike[str], where: str = ""
) -> None:
    """Write an HDF5 model of Caffe to `path`. WeightsError for a layer name with '/'.

    `where` is the file that the error names, if another than `path`.
    """
    for name in weights:
        if "/" in name or name in ("", "."):
            raise WeightsError(
                f"{where or path}: layer {name!r}", "a name that HDF5 takes for a path", "a name without '/'",
                "choose another format; Caffe cannot write this one either (BVLC/caffe#4267)",
            )  # fmt: skip
    check_room(path, weights)
    with h5py.File(path, "w", libver="earliest") as file:
        data = file.create_group("data", track_order=True)
        for name, blobs in weights.items():
            group = data.create_group(name)
            for index, array in enumerate(blobs):
                if is_absent(array):
                    continue
                group.create_dataset(str(index), data=array, track_times=False)


def check_room(path: str | os.PathLike[str], groups: Mapping[str, Sequence[np.ndarray]]) -> None:
    """OSError where there is no room for these groups of datasets: HDF5 can crash when a disk gets full."""
    values = sum(array.nbytes for arrays in groups.values() for array in arrays)
    rest = GROUP_BYTES * (2 + len(groups)) + DATASET_BYTES * sum(map(len, groups.values()))
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, values + rest)


def _layer_groups(
    parent: h5py.Group, prefix: str, where: str, depth: int
) -> Iterator[tuple[str, h5py.Group]]:
    """Every group that holds datasets or nothing, with its path below /data as the layer's name."""
    if depth > MOST_DEPTH:
        raise FormatError(where, f"groups more than {MOST_DEPTH} deep", "an HDF5 model of Caffe")
    for key in parent:
        if not isinstance(parent.get(key, getlink=True), h5py.HardLink):
            raise FormatError(f"{where}: {prefix}{key}", "a link to elsewhere", "data in this file")
        child = parent[key]
        if not isinstance(child, h5py.Group):
            continue  # a blob of the layer that `parent` is
        kinds = {child.get(inner, getclass=True) for inner in child}
        if h5py.Dataset in kinds or not len(child):
            yield prefix + key, child
        yield from _layer_groups(child, f"{prefix}{key}/", where, depth + 1)


def read_blobs(group: h5py.Group, where: str, mapped: MappedFile, budget: list[int]) -> list[np.ndarray]:
    """The datasets 0, 1, 2, ... of a group, missing ones as ABSENT; `budget[0]` bytes may be inflated."""
    keys = {key for key in group if group.get(key, getclass=True) is h5py.Dataset}
    indices = {int(key) for key in keys if key.isascii() and key.isdigit() and len(key) < 4}
    if {str(i) for i in indices} != keys:
        raise FormatError(where, f"blobs named {', '.join(sorted(keys))}", "0, 1, 2, ...")
    return [
        _blob(group, str(i), f"{where}: blob {i}", mapped, budget) if i in indices else ABSENT
        for i in range(max(indices, default=-1) + 1)
    ]


def _blob(group: h5py.Group, key: str, where: str, mapped: MappedFile, budget: list[int]) -> np.ndarray:
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise FormatError(where, "a link to elsewhere", "data in this file")
    dataset = group[key]
    native = dataset.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64) or dataset.shape is None:
        found = "no values" if dataset.shape is None else f"values of {dataset.dtype}"
        raise FormatError(where, found, "float32 or float64")
    if dataset.external or dataset.is_virtual:
        raise FormatError(where, "values kept in another file", "data in this file")
    offset = dataset.id.get_offset()
    if offset is not None and dataset.dtype.isnative and offset + dataset.nbytes <= len(mapped):
        return mapped.array(offset, dataset.size, dataset.dtype.str).reshape(dataset.shape)
    budget[0] -= dataset.nbytes
    if budget[0] < 0:
        raise FormatError(where, f"{dataset.nbytes} bytes of values in a file of {len(mapped)}",
                          "values that are stored", "unpack it with h5repack -f NONE")  # fmt: skip
    return np.asarray(dataset[()], native)
