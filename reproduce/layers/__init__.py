"""The table from Caffe's layer types to the classes that run them, and how to add to it.

A type of your own is a subclass of `Layer` and a rule for its shapes, entered with `register`.
"""

from __future__ import annotations

from reproduce.layers import (
    bn,
    convolution,
    data,
    database,
    drop_path,
    eltwise_accuracy,
    loss,
    neuron,
    normalization,
    pooling,
    recurrent,
    resize,
    shape,
    sources,
    unpooling,
)
from reproduce.layers.base import Layer
from surgery.layer_shapes import Rule, same
from surgery.shapes import LAYER_RULES, PYTHON_RULES, LayerRule

LAYERS: dict[str, type[Layer]] = {
    "AbsVal": neuron.AbsVal,
    "Accuracy": loss.Accuracy,
    "ArgMax": shape.ArgMax,
    "BN": bn.BN,
    "BNLL": neuron.BNLL,
    "BatchNorm": normalization.BatchNorm,
    "BatchReindex": shape.BatchReindex,
    "Bias": normalization.Bias,
    "Clip": neuron.Clip,
    "Concat": shape.Concat,
    "ContrastiveLoss": loss.ContrastiveLoss,
    "Convolution": convolution.Convolution,
    "Crop": shape.Crop,
    "Deconvolution": convolution.Deconvolution,
    "Dropout": neuron.Dropout,
    "DummyData": data.DummyData,
    "ELU": neuron.ELU,
    "Eltwise": shape.Eltwise,
    "EltwiseAccuracy": eltwise_accuracy.EltwiseAccuracy,
    "Embed": convolution.Embed,
    "EuclideanLoss": loss.EuclideanLoss,
    "Exp": neuron.Exp,
    "Filter": shape.Filter,
    "Flatten": shape.Flatten,
    "HDF5Output": data.HDF5Output,
    "HingeLoss": loss.HingeLoss,
    "Im2col": convolution.Im2col,
    "InfogainLoss": loss.InfogainLoss,
    "InnerProduct": convolution.InnerProduct,
    "Interp": resize.Interp,
    "LRN": normalization.LRN,
    "LSTM": recurrent.LSTM,
    "LSTMUnit": recurrent.LSTMUnit,
    "Log": neuron.Log,
    "MVN": normalization.MVN,
    "MultinomialLogisticLoss": loss.MultinomialLogisticLoss,
    "PReLU": neuron.PReLU,
    "Parameter": data.Parameter,
    "Pooling": pooling.Pooling,
    "Power": neuron.Power,
    "RNN": recurrent.RNN,
    "ReLU": neuron.ReLU,
    "Reduction": shape.Reduction,
    "Reshape": shape.Reshape,
    "SPP": pooling.SPP,
    "Scale": normalization.Scale,
    "Sigmoid": neuron.Sigmoid,
    "SigmoidCrossEntropyLoss": loss.SigmoidCrossEntropyLoss,
    "Silence": shape.Silence,
    "Slice": shape.Slice,
    "Softmax": loss.Softmax,
    "SoftmaxWithLoss": loss.SoftmaxWithLoss,
    "Split": shape.Split,
    "Swish": neuron.Swish,
    "TanH": neuron.TanH,
    "Threshold": neuron.Threshold,
    "Tile": shape.Tile,
    "Unpooling": unpooling.Unpooling,
    "Upsample": unpooling.Upsample,
}

# Layers that bring data in: what reads it when a call gives none of their tops.
READERS: dict[str, type[sources.Source]] = {
    "Data": database.Data,
    "HDF5Data": sources.HDF5Data,
    "ImageData": sources.ImageData,
    "MemoryData": sources.MemoryData,
}

# Python layers that compute, by module and layer; nothing is ever imported for them. Those that bring data
# in, without bottoms, are inputs of the net.
PYTHON_LAYERS: dict[tuple[str, str], type[Layer]] = {
    ("reproduce.layers", "DropPath"): drop_path.DropPath,
}


def register(
    name: str | tuple[str, str],
    layer: type[Layer],
    rule: Rule = same,
    bottoms: tuple[int, int] = (1, 1),
    tops: tuple[int, int] = (1, 1),
) -> None:
    """Run layers of type `name`, or Python layers of (module, layer), by a class of your own.

    `rule` makes the shapes of tops and of parameter blobs from the definition and the shapes of the bottoms;
    by default the top is like the bottom and there are no parameters. `bottoms` and `tops` are the least and
    greatest numbers of them. An entry of the same name is replaced.
    """
    entry = LayerRule(rule, bottoms, tops)
    if isinstance(name, str):
        LAYERS[name], LAYER_RULES[name] = layer, entry
    else:
        PYTHON_LAYERS[name], PYTHON_RULES[name] = layer, entry
