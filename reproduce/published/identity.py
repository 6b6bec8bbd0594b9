"""Which published weights a file holds: by the SHA-1 of its bytes, and by a hash of its values.

`tables/known_weights.csv` lists public files with the SHA-1 that public lists give for them, where one is
known. The SHA-1 is that of one file; the content hash is ours and the same for every format and version the
values are stored in, so that a converted file can be recognised: put it into the table's last column.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_weights.export import read_weights
from caffe_weights.files import PathLike, open_input
from caffe_weights.weights import Weights, is_absent
from reproduce.published.claims import TABLES

CHUNK = 1 << 22


@dataclass(frozen=True)
class KnownWeights:
    """A public weight file; empty where it is not known."""

    file: str
    model: str
    sha1: str
    published_at: str
    hash_seen_in: str
    content_sha256: str = ""


@dataclass(frozen=True)
class GivenWeights:
    """Weights given for a net, and the public file that they are, if any."""

    net: str
    path: str
    sha1: str
    content_sha256: str
    known: KnownWeights | None
    weights: Weights

    @property
    def words(self) -> str:
        """What is known of them in one line."""
        name = f"{self.known.file}, as published" if self.known else "no file of the table"
        return f"{self.path}: SHA-1 {self.sha1}, content {self.content_sha256[:16]}: {name}"


def known_weights() -> list[KnownWeights]:
    """The table of public files."""
    lines = (TABLES / "known_weights.csv").read_text(encoding="utf-8").splitlines()
    return [KnownWeights(**row) for row in csv.DictReader(lines)]


def identify(net: str, path: PathLike, known: Sequence[KnownWeights] | None = None) -> GivenWeights:
    """Read weights given for `net` and look them up. FileError, FormatError."""
    weights, sha1 = read_weights(path), _sha1(path)
    content = content_hash(weights)
    for entry in known_weights() if known is None else known:
        if entry.sha1 == sha1 or entry.content_sha256 == content:
            return GivenWeights(net, str(path), sha1, content, entry, weights)
    return GivenWeights(net, str(path), sha1, content, None, weights)


def content_hash(weights: Mapping[str, Sequence[np.ndarray]]) -> str:
    """SHA-256 over layers by name, and of each blob its index, shape and values as little-endian float32.

    Leading ones of a shape, by which old files differ from new ones, do not count; nor do absent blobs.
    """
    digest = hashlib.sha256()
    for layer in sorted(weights):
        for index, blob in enumerate(weights[layer]):
            if is_absent(blob):
                continue
            shape = list(blob.shape)
            while shape and shape[0] == 1:
                del shape[0]
            digest.update(f"{layer}\0{index}\0{shape}\0".encode())
            digest.update(np.ascontiguousarray(blob, dtype="<f4").data)
    return digest.hexdigest()


def _sha1(path: PathLike) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with open_input(path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
