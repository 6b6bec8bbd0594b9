"""The other side of `fcn parity --against caffe:PYTHON`: runs one case in an interpreter that has Caffe.

Started as `PYTHON caffe_worker.py FOLDER`; needs Python 3.6, numpy and pycaffe (1.0 or a fork of it), and
nothing of this package. FOLDER holds `net.prototxt`, the weights and `request.npz`: the inputs `in/BLOB`, the
gradients to begin with `seed/BLOB`, and `meta` (phase, name of the weights' file, backward). It leaves
`answer.npz`: arrays `a0`, `a1`, ... and `meta`, which says what each is. Layers are run one by one, so that
every content of a blob is seen, also those that an in-place layer replaces.
"""

import hashlib
import json
import os
import sys
import zipfile
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")  # errors and failed checks only

import numpy as np


class Archive:
    """An .npz that is written array by array, so that a large net's blobs need no second copy."""

    def __init__(self, path: str) -> None:
        self.file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self.entries = []  # type: list

    def add(self, kind: str, layer: str, name: Any, array: np.ndarray) -> None:
        """Store one array as `kind` of a layer: a blob's content, its gradient, a parameter's gradient."""
        member = f"a{len(self.entries)}"
        with self.file.open(member + ".npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, np.ascontiguousarray(array, np.float32).reshape(array.shape))
        self.entries.append([member, kind, layer, name])

    def close(self, meta: dict) -> None:
        """Write `meta` and end the file."""
        with self.file.open("meta.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array(json.dumps(dict(meta, arrays=self.entries))))
        self.file.close()


def main(folder: str) -> None:
    """Run the case in `folder`."""
    import caffe

    caffe.set_mode_cpu()
    request = np.load(os.path.join(folder, "request.npz"))
    meta = json.loads(str(request["meta"]))
    phase = caffe.TRAIN if meta["phase"] == "TRAIN" else caffe.TEST
    net = caffe.Net(os.path.join(folder, "net.prototxt"), phase)
    net.copy_from(os.path.join(folder, meta["weights"]))
    for name in request.files:
        if name.startswith("in/"):
            net.blobs[name[3:]].data[...] = request[name]
    archive = Archive(os.path.join(folder, "answer.part"))
    bottoms = forward(net, archive)
    if meta["backward"]:
        seeds = {name[5:]: request[name] for name in request.files if name.startswith("seed/")}
        backward(net, archive, bottoms, seeds)
    archive.close({"caffe": version(caffe), "python": sys.version.split()[0], "parameters": hashes(net)})
    os.rename(os.path.join(folder, "answer.part"), os.path.join(folder, "answer.npz"))


def forward(net: Any, archive: Archive) -> list:
    """Run the layers one by one and store their tops; returns what each layer's bottoms are."""
    writer = {}  # type: dict
    bottoms = []
    for i, layer in enumerate(net._layer_names):
        net._forward(i, i)
        read, tops = list(net._bottom_ids(i)), list(net._top_ids(i))
        bottoms.append([(blob, writer[blob]) for blob in read])
        if net.layers[i].type == "Split":  # its tops are the bottom's content under other names
            writer.update((top, writer[read[0]]) for top in tops)
            continue
        for top in tops:
            name = net._blob_names[top]
            writer[top] = (layer, name)
            archive.add("blob", layer, name, net.blobs[name].data)
    return bottoms


def backward(net: Any, archive: Archive, bottoms: list, seeds: dict) -> None:
    """Run the layers backward one by one; store the gradients of their bottoms and of all parameters.

    `bottoms` has for each layer (blob, (layer that wrote it, name)). Whether a layer computed the gradient
    of a bottom is told by the NaN put there before; in place, by whether that of its top was computed.
    """
    for name, seed in seeds.items():
        net.blobs[name].diff[...] = seed
    done = {i for i, name in enumerate(net._blob_names) if name in seeds}
    for i in reversed(range(len(net.layers))):
        before = poison(net, {blob for blob, _ in bottoms[i]} - set(net._top_ids(i)))
        net._backward(i, i)
        for blob, (layer, name) in bottoms[i]:
            diff = net.blobs[net._blob_names[blob]].diff
            if blob in before and diff.size and not np.isnan(diff).all():
                done.add(blob)
            elif blob in before:
                diff[...] = before[blob]
            if blob in done and net._blob_names[blob] == name:  # not a copy that a Split makes
                archive.add("gradient", layer, name, diff)
    for layer, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            archive.add("parameter_gradient", layer, index, blob.diff)


def poison(net: Any, blobs: set) -> dict:
    """Fill the gradients of these blobs with NaN; returns what was there."""
    before = {}
    for blob in blobs:
        diff = net.blobs[net._blob_names[blob]].diff
        before[blob] = diff.copy()
        diff[...] = np.nan
    return before


def hashes(net: Any) -> dict:
    """SHA-256 of every parameter as it was loaded, by layer."""
    return {
        layer: [hashlib.sha256(np.ascontiguousarray(blob.data).tobytes()).hexdigest() for blob in blobs]
        for layer, blobs in net.params.items()
    }


def version(caffe: Any) -> str:
    """What this Caffe calls itself."""
    return str(getattr(caffe, "__version__", "of unknown version"))


if __name__ == "__main__":
    main(sys.argv[1])
