"""The table from Caffe's layer types to the classes that run them.

A type of your own is a subclass of `Layer` entered here, `LAYERS["Mine"] = Mine`, and the rule for its shapes
entered into `surgery.shapes.LAYER_RULES`.
"""

from __future__ import annotations

from reproduce.layers import convolution, data, loss, neuron, normalization, pooling, recurrent, shape
from reproduce.layers.base import Layer

LAYERS: dict[str, type[Layer]] = {
    "AbsVal": neuron.AbsVal,
    "Accuracy": loss.Accuracy,
    "ArgMax": shape.ArgMax,
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
    "Embed": convolution.Embed,
    "EuclideanLoss": loss.EuclideanLoss,
    "Exp": neuron.Exp,
    "Filter": shape.Filter,
    "Flatten": shape.Flatten,
    "HingeLoss": loss.HingeLoss,
    "Im2col": convolution.Im2col,
    "InfogainLoss": loss.InfogainLoss,
    "InnerProduct": convolution.InnerProduct,
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
}
