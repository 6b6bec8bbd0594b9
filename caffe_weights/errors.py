"""Errors for bad input: typed, one line, lower case.

Every message says where, what was found, what was wanted and what to do, in that order. The command
line prints it and exits with 2; a library caller catches `InputError` or one of its kinds. Mistakes of
our own are assertions or ordinary Python exceptions and keep their traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used.

    `where` is a file, with line and column, byte offset or layer where there is one. The message is
    `where: found; wanted ...; do`, with the parts that were given.
    """

    def __init__(self, where: str, found: str, wanted: str = "", do: str = "") -> None:
        self.where, self.found, self.wanted, self.do = where, found, wanted, do
        parts = [f"{where}: {found}" if where else found]
        parts += [f"wanted {wanted}"] if wanted else []
        parts += [do] if do else []
        super().__init__(" ".join("; ".join(parts).split()))


class FileError(InputError):
    """A file cannot be opened, read or written."""


class FormatError(InputError):
    """The bytes of a file are not what its format allows."""


class PrototxtError(InputError):
    """A prototxt does not parse; `where` carries line and column."""


class UpgradeError(InputError):
    """An old net or solver has no meaning in today's form."""


class NetError(InputError):
    """A net definition cannot be built: an unknown layer, a bad parameter, a shape that does not fit."""


class WeightsError(InputError):
    """Weights do not fit the net: a missing blob, another count, another shape."""


@contextmanager
def in_net(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Put the file of a net in front of errors that name only a layer, a blob or an input of it."""
    try:
        yield
    except (NetError, UpgradeError) as error:
        if path is None or error.where.startswith(os.fspath(path)):
            raise
        where = f"{os.fspath(path)}: {error.where}" if error.where else os.fspath(path)
        raise type(error)(where, error.found, error.wanted, error.do) from None
