"""Cut a classifier into a fully convolutional net: InnerProduct to Convolution, in net and weights together.

An InnerProduct over axis 1 takes its bottom in channel, row, column order, so its N x K weights are those of
a convolution whose kernel covers the whole bottom: N x C x H x W, the same values in the same order
(src/caffe/layers/inner_product_layer.cpp of Caffe, commit 9b891540). The kernel is the size that the bottom
has for the input shapes given, the training size. On a larger input the net then gives a map: what the
classifier gives at each position.

Layers between and after are followed, not trusted: what treats each position alike stays, what only
flattens goes, and what would mix positions is a NetError that names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from caffe_weights import caffe_pb2
from caffe_weights.errors import NetError, WeightsError
from caffe_weights.upgrade import upgrade_net
from caffe_weights.weights import Weights, is_absent
from surgery.convolution_report import ConvertedLayer, ConvolutionReport, describe_input
from surgery.flat_maps import THROUGH, Form, adapt, top_sizes
from surgery.geometry import Layer, Shape, dims, fail
from surgery.shapes import LayerShapes, Net, NetShapes, infer_shapes
from surgery.transplant import transplant


def convolutionize(
    net: Net,
    weights: Weights | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    rename: Mapping[str, str] | None = None,
    slide_pooling: bool = True,
    drop: bool = False,
) -> tuple[Net, Weights | None, ConvolutionReport]:
    """The net with every InnerProduct as a Convolution, its weights, and a report; new ones, all of them.

    `net` is filtered; one of an old form is upgraded. `input_shapes` as for `infer_shapes`, at the size that
    the classifier was trained for. Weights are reshaped as views; only those with `transpose: true` are
    copied. `rename` gives converted layers other names; a top named like its layer goes along.
    A global pooling in front of an InnerProduct becomes a pooling of the training size with stride 1, unless
    `slide_pooling` is false. `drop` leaves out weights of layers that the net lacks.

    NetError: a layer that cannot be converted or would mix positions. WeightsError: a blob missing or of
    another count, or one too many without `drop`.
    """
    if net.layers or net.input:
        net = upgrade_net(net)
    shapes = infer_shapes(net, input_shapes)
    rewriter = _Rewriter(net, shapes, dict(rename or {}), slide_pooling)
    new = rewriter.rewrite()
    new_shapes = infer_shapes(new, input_shapes)
    for layer in rewriter.converted:
        top = new_shapes.layers[layer.new_name].tops[0]
        assert top == (top[0], layer.new_shape[0], 1, 1), (layer.new_name, top)
    smallest, stride = describe_input(new, new_shapes, input_shapes or {}, rewriter.outputs)
    report = ConvolutionReport(rewriter.converted, rewriter.absorbed, rewriter.notes, smallest, stride)
    if weights is None:
        return new, None, report
    cut = _cut_weights(weights, rewriter.converted)
    params = {name: layer.params for name, layer in new_shapes.layers.items()}
    result, moved = transplant(cut, params, drop=drop)
    report.dropped = moved.dropped
    return new, Weights(result, new, weights.source), report


class _Rewriter:
    """One pass over the net, with the form of every blob that changed its shape or its name."""

    def __init__(self, net: Net, shapes: NetShapes, rename: dict[str, str], slide_pooling: bool) -> None:
        self.net, self.shapes, self.rename, self.slide_pooling = net, shapes, rename, slide_pooling
        self.converted: list[ConvertedLayer] = []
        self.absorbed: list[str] = []
        self.notes: list[str] = []
        self.outputs: list[str] = []
        self._forms: dict[str, Form] = {}
        self._writes: Counter[str] = Counter()
        self._read = {name for layer in net.layer for name in layer.bottom}
        self._wanted = _towards_inner_products(net)
        self._check_rename()

    def rewrite(self) -> Net:
        """The new net; the lists of this object tell what was done."""
        new = caffe_pb2.NetParameter()
        new.CopyFrom(self.net)
        del new.layer[:]
        rules = {
            "InnerProduct": self._convert,
            "Pooling": self._pool,
            "Flatten": self._flatten,
            "Reshape": self._flatten,
        }
        for old in self.net.layer:
            layer = caffe_pb2.LayerParameter()
            layer.CopyFrom(old)
            if rules.get(old.type, self._follow)(layer, self.shapes.layers[old.name]):
                new.layer.append(layer)
                self._writes.update(layer.top)
        if not self.converted:
            self.notes.append("no InnerProduct layer: nothing to convert")
        return new

    def _check_rename(self) -> None:
        kinds = {layer.name: layer.type for layer in self.net.layer}
        taken = {*kinds, *self.shapes.blobs}
        for old, new in self.rename.items():
            if kinds.get(old) != "InnerProduct":
                names = [name for name, kind in kinds.items() if kind == "InnerProduct"]
                raise NetError(
                    f"rename {old}", "no InnerProduct layer of this name", f"one of {', '.join(names)}"
                )
            if new in taken:
                raise NetError(f"rename {old}", f"{new} is already a layer or blob", "a new name")
            taken.add(new)

    def _convert(self, layer: Layer, old: LayerShapes) -> bool:
        form = self._input_form(layer, old)
        inner, outputs = layer.inner_product_param, layer.inner_product_param.num_output
        kernel = form.size[1:]
        layer.bottom[0] = self._name(layer, layer.bottom[0])
        notes, transposed = _notes(layer, self.net), inner.transpose
        layer.type = "Convolution"
        _write_convolution(layer.convolution_param, inner, kernel)
        layer.ClearField("inner_product_param")
        layer.ClearField("blobs")
        layer.name = self.rename.get(old.name, old.name)
        top = layer.top[0]
        if top == old.name:
            layer.top[0] = layer.name
        self._forms[top] = Form(layer.top[0], (outputs, 1, 1))
        self.outputs.append(layer.top[0])
        self.converted.append(
            ConvertedLayer(
                name=old.name,
                new_name=layer.name,
                bottom=old.bottoms[0],
                old_shape=old.params[0],
                new_shape=(outputs, *form.size),
                kernel=kernel,
                transposed=transposed,
                absorbed=form.absorbed,
                notes=tuple(notes),
            )
        )
        return True

    def _input_form(self, layer: Layer, old: LayerShapes) -> Form:
        """The map that an InnerProduct's bottom is, or was before it was flattened."""
        shape, axis = old.bottoms[0], layer.inner_product_param.axis
        if axis % len(shape) != 1:
            raise fail(
                layer,
                f"axis {axis} of a bottom of {dims(shape)}",
                "axis 1: all but the batch",
                "only such a layer is a convolution",
            )
        form = self._forms.get(layer.bottom[0])
        if form and form.flat:
            return form
        if len(shape) == 4:
            return Form(layer.bottom[0], shape[1:])
        raise fail(
            layer,
            f"bottom {layer.bottom[0]} is {dims(shape)}, without a height and width",
            "a blob of 4 axes, or one flattened from it",
            "give the input 4 axes (N x K x 1 x 1)",
        )

    def _pool(self, layer: Layer, old: LayerShapes) -> bool:
        pooling = layer.pooling_param
        height, width = old.bottoms[0][2:]
        if pooling.global_pooling and self.slide_pooling and layer.top[0] in self._wanted:
            for field in ("global_pooling", "stride", "stride_h", "stride_w", "pad", "pad_h", "pad_w"):
                pooling.ClearField(field)
            _write_kernel(pooling, (height, width))
            self.notes.append(
                f"{layer.name}: global pooling became {height} x {width} with stride 1, which slides"
            )
        elif pooling.global_pooling:
            self.notes.append(f"{layer.name}: global pooling stays, one position for any input size")
        return self._follow(layer, old)

    def _flatten(self, layer: Layer, old: LayerShapes) -> bool:
        """Drop a Flatten or Reshape that only changes the number of axes; its bottom is read instead."""
        bottom, top = layer.bottom[0], layer.top[0]
        before, after = old.bottoms[0], old.tops[0]
        form = self._forms.get(bottom)
        if form and form.flat:
            size, goes = form.size, after in (before, (before[0], *form.size))
        else:
            size, goes = before[1:], top in self._wanted and len(before) == 4 and _flattens(before, after)
        if not goes:
            return self._follow(layer, old)
        name = self._name(layer, bottom)
        absorbed = (*(form.absorbed if form else ()), layer.name)
        still_flat = after != (before[0], *size)
        self._forms[top] = Form(name, size, still_flat, True, self._writes[name], absorbed)
        self.absorbed.append(layer.name)
        if top not in self._read:
            self.notes.append(f"{layer.name}: absorbed, so the output is {name} instead of {top}")
        return False

    def _follow(self, layer: Layer, old: LayerShapes) -> bool:
        """A layer that stays: check that it means the same on maps, and rename what it reads and writes."""
        forms = [self._forms.get(name) for name in layer.bottom]
        flat = [form for form in forms if form and form.flat]
        absorbed = tuple(name for form in flat for name in form.absorbed)
        sizes = top_sizes(layer, old, forms) if flat else {}
        if flat:
            self.notes += adapt(layer, old)
        names = [self._name(layer, name) for name in layer.bottom]
        tops = list(layer.top)
        for i, top in enumerate(tops):
            in_place = i < len(forms) and top == layer.bottom[i]
            form = forms[i] if in_place else None
            new = form.name if form and not form.borrowed else top
            layer.top[i] = new
            if top in sizes:
                self._forms[top] = Form(new, sizes[top], absorbed=absorbed)
            elif form:
                self._forms[top] = replace(form, name=new, borrowed=False, absorbed=())
        layer.bottom[:] = names
        return True

    def _name(self, layer: Layer, blob: str) -> str:
        """The blob to read instead of `blob`."""
        form = self._forms.get(blob)
        if form is None:
            return blob
        if form.borrowed and self._writes[form.name] != form.version:
            raise fail(
                layer,
                f"bottom {blob} was flattened from {form.name}, overwritten since",
                "an unchanged blob",
                "write that layer's result to another top",
            )
        return form.name


def _towards_inner_products(net: Net) -> set[str]:
    """Blobs that an InnerProduct reads, directly or through layers that keep or flatten a map."""
    wanted: set[str] = set()
    for layer in reversed(net.layer):
        if layer.type == "InnerProduct" or (layer.type in THROUGH and wanted.intersection(layer.top)):
            wanted.update(layer.bottom)
    return wanted


def _flattens(before: Shape, after: Shape) -> bool:
    flat = (before[0], prod(before[1:]))
    return after in (flat, (*flat, 1, 1))


def _notes(layer: Layer, net: Net) -> list[str]:
    """What to say of an InnerProduct; NetError if its transposed weights have another user."""
    inner = layer.inner_product_param
    shared = layer.param[0].name if layer.param else ""
    users = sum(spec.name == shared for other in net.layer for spec in other.param)
    if inner.transpose and shared and users > 1:
        raise fail(
            layer,
            f"transposed weights, shared as {shared}",
            "weights of its own",
            "a convolution cannot share them",
        )
    notes = ["transpose undone"] if inner.transpose else []
    filler = inner.weight_filler
    if filler.type in ("xavier", "msra") and (inner.transpose or filler.variance_norm != filler.FAN_IN):
        notes.append(f"the {filler.type} filler now counts the fans of a convolution")
    return notes


def _write_convolution(
    conv: caffe_pb2.ConvolutionParameter, inner: caffe_pb2.InnerProductParameter, kernel: Shape
) -> None:
    conv.num_output = inner.num_output
    _write_kernel(conv, kernel)
    if inner.HasField("bias_term"):
        conv.bias_term = inner.bias_term
    for filler in ("weight_filler", "bias_filler"):
        if inner.HasField(filler):
            getattr(conv, filler).CopyFrom(getattr(inner, filler))


def _write_kernel(
    settings: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter, kernel: Shape
) -> None:
    height, width = kernel
    if height != width:
        settings.kernel_h, settings.kernel_w = height, width
    elif isinstance(settings, caffe_pb2.PoolingParameter):
        settings.kernel_size = height
    else:
        settings.kernel_size.append(height)


def _cut_weights(weights: Weights, converted: Sequence[ConvertedLayer]) -> Weights:
    """The weights under their new names, those of converted layers in convolution shape."""
    by_name = {layer.name: layer for layer in converted}
    result = Weights(source=weights.source)
    for name, blobs in weights.items():
        layer = by_name.get(name)
        new_name = layer.new_name if layer else name
        if new_name in result:
            raise WeightsError(
                f"layer {new_name}",
                "both renamed to and in the weights",
                "one layer",
                "rename to another name",
            )
        if layer and blobs:
            result[new_name] = [_cut(weights.source, layer, blobs[0]), *blobs[1:]]
        else:
            result[name] = blobs
    return result


def _cut(source: str, layer: ConvertedLayer, blob: np.ndarray) -> np.ndarray:
    """N x K values as N x C x H x W; K x N ones are transposed first."""
    if is_absent(blob):
        return blob
    if blob.shape not in (layer.old_shape, (1, 1, *layer.old_shape)):
        where = f"{source}: layer {layer.name}" if source else f"layer {layer.name}"
        raise WeightsError(
            where,
            f"weights of {dims(blob.shape)}",
            dims(layer.old_shape),
            "use the net and input size they were trained with",
        )
    flat = blob.reshape(layer.old_shape)
    return (flat.T if layer.transposed else flat).reshape(layer.new_shape)
