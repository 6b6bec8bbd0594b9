"""Dialects: forks of Caffe that give field numbers of their own to layers of their own.

Our schema holds such fields under numbers that occur in no file (2000 to 2999), since forks give one number
to different things: 143 is BVLC Caffe's input_param, bn_param in one fork and interp_param in another. A
dialect says which of a layer's numbers stand for which field, by the layer's type; everything else in the
file is read as ever. The dialect is recognised by what the file holds, and a file is written in the one it
was read in.

Numbers are facts of the forks' `caffe.proto`: HyeonwooNoh/caffe (d9e8494a, 0b9f3ad7),
alexgkendall/caffe-segnet (03d1e9f1), TimoSaemann/caffe-segnet-cudnn5 (6268a103), hszhao/PSPNet (88d0b3ee),
DeepLab v2's interp_param. Of Kersner's port (branch py-deconvnet) two numbers are known, and of the FCN
authors' old fork only CROP, which is recalled and not checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from caffe_weights import wire
from caffe_weights.caffe_pb2 import LayerParameter, NetParameter, V1LayerParameter
from caffe_weights.errors import FormatError

AUTO, BVLC = "auto", "bvlc"
OURS = range(2000, 3000)  # numbers that our schema uses for forks
V1_LAYERS, V2_LAYERS = 2, 100  # of NetParameter
V1_TYPE, V2_TYPE, V1_BLOBS, V2_BLOBS = 5, 2, 6, 7
LAST_V1_TYPE = 39
# Of a V2 layer of any type: the form began with these, so no fork has others, and a layer of a fork may well
# take the settings of a standard one, such as convolution_param.
COMMON = frozenset([*range(1, 12), *range(100, 131)])
_TYPES = """
AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop Data
Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output
HingeLoss Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM LSTMUnit Log MVN MemoryData
MultinomialLogisticLoss PReLU Parameter Pooling Power Python RNN ReLU Reduction Reshape SPP Scale Sigmoid
SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData
"""
BVLC_TYPES = frozenset(_TYPES.split())
INSIDE = ("image_data_param", "loss_param")  # messages that forks add fields to

Numbers = Mapping[int, int]  # in the file -> in our schema


@dataclass(frozen=True)
class Dialect:
    """One fork. `v1_types` and `v1_fields` hold for every V1 layer, `fields` for V2 layers of a type.

    `inner` renumbers inside a message that is a field of the layer, by its name. `bn_blobs`: how many
    parameters its BN has. `four_sizes`: its blobs have num, channels, height and width and no shape.
    """

    name: str
    words: str
    v1_types: Numbers = field(default_factory=dict)
    v1_fields: Numbers = field(default_factory=dict)
    fields: Mapping[str, Numbers] = field(default_factory=dict)
    inner: Mapping[str, Numbers] = field(default_factory=dict)
    bn_blobs: int = 2
    four_sizes: bool = False

    def __str__(self) -> str:
        return f"dialect {self.name} ({self.words})"

    def numbers(self, version: int, kind: str) -> Numbers:
        """The fields of a layer of this version and type."""
        return self.fields.get(kind, {}) if version == 2 else self.v1_fields

    def read(self, net: bytes) -> bytes:
        """An encoded net without blob values, in our numbers."""
        kept = bytearray()
        for item in wire.fields(net, 0, len(net), "a net"):
            if item.wire == wire.LEN and item.number in (V1_LAYERS, V2_LAYERS):
                version = 2 if item.number == V2_LAYERS else 1
                layer = net[item.start : item.end]
                layer = _renumbered(layer, self._plan(version, _kind(layer, version)))
                kept += wire.encode_tag(item.number, wire.LEN) + wire.encode_varint(len(layer)) + layer
            else:
                kept += net[item.at : item.end]
        return bytes(kept)

    def write(self, layer: bytes, version: int) -> bytes:
        """An encoded layer of ours in the fork's numbers and in their order."""
        return _renumbered(layer, self._plan(version, _kind(layer, version), back=True), in_order=True)

    def holds(self, layer: LayerParameter) -> bool:
        """Whether a V2 layer's fields of forks all have a number in this dialect."""
        tables = {name: set(numbers.values()) for name, numbers in self.inner.items()}
        tables[""] = set(self.fields.get(layer.type, {}).values())
        return all(number in tables.get(name, ()) for name, number in fork_fields(layer))

    def fits(self, layers: Sequence[Traces]) -> bool:
        """Whether nothing in these layers speaks against it, and something for it."""
        return not any(map(self._against, layers)) and any(map(self._for, layers))

    def _against(self, layer: Traces) -> bool:
        known = self.numbers(layer.version, layer.kind)
        return (
            any(number not in known for number in layer.strange)
            or any(number not in self.inner.get(name, {}) for name, number in layer.strange_inside)
            or (layer.type_number > LAST_V1_TYPE and layer.type_number not in self.v1_types)
            or (layer.is_bn and layer.blobs not in (0, self.bn_blobs))
        )

    def _for(self, layer: Traces) -> bool:
        known = self.numbers(layer.version, layer.kind)
        return (
            any(number in known for number in layer.strange)
            or bool(layer.strange_inside)
            or layer.type_number in self.v1_types
            or (layer.is_bn and layer.blobs == self.bn_blobs != 2)
        )

    def _plan(self, version: int, kind: str, back: bool = False) -> _Plan:
        schema = (LayerParameter if version == 2 else V1LayerParameter).DESCRIPTOR.fields_by_name
        inner = {schema[name].number: _turned(numbers, back) for name, numbers in self.inner.items()}
        values = {V1_TYPE: _turned(self.v1_types, back)} if version == 1 else {}
        return _Plan(_turned(self.numbers(version, kind), back), inner, values)


@dataclass(frozen=True)
class Traces:
    """What a layer's bytes tell of its dialect.

    `strange` are fields that BVLC Caffe has not, or that it has for other types of layers; `strange_inside`
    those in messages that it has, with the message's name.
    """

    version: int
    kind: str = ""  # of a V2 layer
    type_number: int = 0  # of a V1 layer
    strange: frozenset[int] = frozenset()
    strange_inside: frozenset[tuple[str, int]] = frozenset()
    blobs: int = 0

    @property
    def is_bn(self) -> bool:
        """Whether it is the BN of any fork."""
        return self.kind == "BN" or self.type_number == 43


def _unread(*numbers: int) -> dict[int, int]:
    # kept under numbers that are no field of ours
    return {number: 2500 + number for number in numbers}


_IMAGE_DATA = {"image_data_param": {13: 2013, 14: 2014, 15: 2015, 16: 2016, 17: 2017}}
_WEIGHTED_LOSS = {3: 2001, 4: 2002}
_BN, _UNPOOLING, _UPSAMPLE, _DENSE_DATA, _INTERP = 2201, 2202, 2204, 2205, 2143

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("fcn-future", "the FCN authors' fork of 2014, longjon/caffe", {40: 2040}, four_sizes=True),
        Dialect("deconvnet", "HyeonwooNoh/caffe", {n: 2000 + n for n in range(40, 54)},
                {n: 2000 + n for n in (43, 44, 45)} | _unread(*range(46, 51)), inner=_IMAGE_DATA,
                four_sizes=True),
        Dialect("kersner", "Kersner's port of DeconvNet's layers to a newer Caffe",
                fields={"BN": {143: _BN}, "Unpooling": {141: _UNPOOLING}}, inner=_IMAGE_DATA),
        Dialect("segnet", "alexgkendall/caffe-segnet",
                fields={"BN": {45: _BN}, "Upsample": {137: _UPSAMPLE}, "DenseImageData": {138: _DENSE_DATA}},
                inner={"loss_param": _WEIGHTED_LOSS}),
        Dialect("segnet-cudnn5", "TimoSaemann/caffe-segnet-cudnn5",
                fields={"BN": {45: _BN}, "Upsample": {147: _UPSAMPLE}, "DenseImageData": {46: _DENSE_DATA}},
                inner={"loss_param": _WEIGHTED_LOSS | {5: 3}}),
        Dialect("deeplab", "DeepLab v2", fields={"Interp": {143: _INTERP}}),
        Dialect("pspnet", "hszhao/PSPNet, whose BN of 4 blobs keeps mean and variance and is not run here",
                fields={"BN": _unread(137), "Interp": {163: _INTERP}, "Scale": {160: 142}, "Bias": {161: 141},
                        "SegAccuracy": _unread(164)},
                inner={"convolution_param": {17: 18, **_unread(18, 19)}}, bn_blobs=4),  # hole, hole_h, hole_w
    )
}  # fmt: skip
_BVLC_NUMBERS = [n for n in LayerParameter.DESCRIPTOR.fields_by_number if n not in COMMON and n not in OURS]


def choose(net: NetParameter, encoded: bytes, wanted: str, where: str) -> Dialect | None:
    """The dialect that a net is in; None where every number in it is BVLC Caffe's, or nobody's.

    `net` is what protobuf makes of `encoded`, its bytes without blob values. `wanted` is AUTO, BVLC or a
    name. FormatError where the file is in another dialect than that, and for one of our own numbers in it.
    """
    if wanted not in (AUTO, BVLC, *DIALECTS):
        raise FormatError(f"dialect {wanted}", "no such dialect", ", ".join((AUTO, BVLC, *DIALECTS)))
    layers: list[LayerParameter | V1LayerParameter] = [*net.layer, *net.layers]
    if any(_has_our_numbers(layer) for layer in layers):
        raise FormatError(where, "a field or type of number 2000 to 2999", "numbers that some Caffe uses")
    fitting = _fitting(encoded, where) if any(_may_be_a_forks(layer) for layer in layers) else []
    found = next((d for d in fitting if d.name == wanted), fitting[0] if fitting else None)
    if wanted == AUTO or (found.name if found else BVLC) == wanted:
        return found
    raise FormatError(
        where,
        f"a file in {found}" if found else "a file with BVLC Caffe's own numbers",
        "BVLC Caffe's own numbers" if wanted == BVLC else str(DIALECTS[wanted]),
        f"read it in dialect {found.name if found and found.name in DIALECTS else AUTO}",
    )


def dialect_for(net: NetParameter, where: str) -> Dialect | None:
    """A dialect that holds all fields of forks in a V2 net, None where there are none.

    FormatError where no dialect does.
    """
    layers = [layer for layer in net.layer if any(fork_fields(layer))]
    for dialect in DIALECTS.values() if layers else ():
        if all(map(dialect.holds, layers)):
            return dialect
    if not layers:
        return None
    odd = next((x for x in layers if not any(d.holds(x) for d in DIALECTS.values())), layers[0])
    kinds = ", ".join(sorted({layer.type for layer in layers}))
    raise FormatError(
        where,
        f"settings of layer {odd.name} ({odd.type}), among layers of forks ({kinds})",
        "layers whose settings one fork's caffemodel can hold together",
        "drop the layer, or write another format",
    )


def to_file(layer: bytes, version: int, dialect: Dialect | None) -> bytes:
    """An encoded layer of ours, without blobs, as a file in this dialect has it: without numbers of ours."""
    layer = dialect.write(layer, version) if dialect is not None else layer
    items = [item for item in wire.fields(layer, 0, len(layer), "a layer") if item.number not in OURS]
    return b"".join(layer[item.at : item.end] for item in items)


def fork_fields(layer: LayerParameter | V1LayerParameter) -> Iterator[tuple[str, int]]:
    """The fields of forks that are set: ("", number), or the name of the message they are in and number."""
    for descriptor, value in layer.ListFields():
        if descriptor.number in OURS:
            yield "", descriptor.number
        elif descriptor.name in INSIDE:
            yield from ((descriptor.name, x.number) for x, _ in value.ListFields() if x.number in OURS)


def _has_our_numbers(layer: LayerParameter | V1LayerParameter) -> bool:
    return any(fork_fields(layer)) or (isinstance(layer, V1LayerParameter) and layer.type in OURS)


def _may_be_a_forks(layer: LayerParameter | V1LayerParameter) -> bool:
    if isinstance(layer, LayerParameter):
        return layer.type not in BVLC_TYPES
    return not layer.HasField("type") and not layer.HasField("layer")  # an enum value that is not known


def _fitting(encoded: bytes, where: str) -> list[Dialect]:
    layers = [
        _traces(encoded[item.start : item.end], 2 if item.number == V2_LAYERS else 1)
        for item in wire.fields(encoded, 0, len(encoded), where)
        if item.wire == wire.LEN and item.number in (V1_LAYERS, V2_LAYERS)
    ]
    fitting = [dialect for dialect in DIALECTS.values() if dialect.fits(layers)]
    strange = {
        layer.kind for layer in layers if layer.version == 2 and layer.strange.intersection(_BVLC_NUMBERS)
    }
    if fitting or not strange:
        return fitting
    # what BVLC Caffe would read as settings of another type is not read at all
    return [
        Dialect(
            "unknown", "of a fork that is not known", fields=dict.fromkeys(strange, _unread(*_BVLC_NUMBERS))
        )
    ]


# ---- bytes ----


@dataclass(frozen=True)
class _Plan:
    """How to renumber a layer: its fields, the fields inside of some of them, the values of some."""

    fields: Numbers
    inner: Mapping[int, Numbers] = field(default_factory=dict)
    values: Mapping[int, Numbers] = field(default_factory=dict)


def _renumbered(data: bytes, plan: _Plan, in_order: bool = False) -> bytes:
    pieces = []
    for item in wire.fields(data, 0, len(data), "a layer"):
        number, value = plan.fields.get(item.number, item.number), data[item.start : item.end]
        if item.number in plan.inner and item.wire == wire.LEN:
            value = _renumbered(value, _Plan(plan.inner[item.number]), in_order)
        elif item.number in plan.values and item.wire == wire.VARINT:
            old = _decoded(value)
            value = wire.encode_varint(plan.values[item.number].get(old, old))
        length = wire.encode_varint(len(value)) if item.wire == wire.LEN else b""
        pieces.append((number, wire.encode_tag(number, item.wire) + length + value))
    if in_order:
        pieces.sort(key=lambda piece: piece[0])
    return b"".join(piece for _, piece in pieces)


def _traces(layer: bytes, version: int) -> Traces:
    message = LayerParameter if version == 2 else V1LayerParameter
    kind, known = _kind(layer, version), message.DESCRIPTOR.fields_by_number
    strange, inside, type_number, blobs = set(), set(), 0, 0
    for item in wire.fields(layer, 0, len(layer), "a layer"):
        descriptor = known.get(item.number)
        if version == 1 and item.number == V1_TYPE and item.wire == wire.VARINT:
            type_number = _decoded(layer[item.start : item.end])
        blobs += item.number == (V2_BLOBS if version == 2 else V1_BLOBS)
        own = version == 1 or kind in BVLC_TYPES or item.number in COMMON
        if descriptor is None or not own:
            strange.add(item.number)
        if descriptor is not None and descriptor.name in INSIDE and item.wire == wire.LEN:
            assert descriptor.message_type is not None
            numbers = descriptor.message_type.fields_by_number
            for field_inside in wire.fields(layer, item.start, item.end, "a layer"):
                if field_inside.number not in numbers:
                    inside.add((descriptor.name, field_inside.number))
    return Traces(version, kind, type_number, frozenset(strange), frozenset(inside), blobs)


def _kind(layer: bytes, version: int) -> str:
    kind = b""
    for item in wire.fields(layer, 0, len(layer), "a layer") if version == 2 else ():
        if item.number == V2_TYPE and item.wire == wire.LEN:
            kind = layer[item.start : item.end]
    return kind.decode(errors="replace")


def _decoded(varint: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint))


def _turned(numbers: Numbers, back: bool) -> dict[int, int]:
    return {ours: theirs for theirs, ours in numbers.items()} if back else dict(numbers)
