"""docs/layers.md says of every layer what holds now."""

from __future__ import annotations

from layer_page import PAGE, golden_counts, text

from reproduce.layers import LAYERS, READERS
from reproduce.layers.coverage import FACTS
from surgery.shapes import data_types, known_types

WANTED = """
AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop
Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output
HingeLoss Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM LSTMUnit Log MVN MemoryData
MultinomialLogisticLoss PReLU Parameter Pooling Power RNN ReLU Reduction Reshape SPP Scale Sigmoid
SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split Swish TanH Threshold Tile Data Python
"""


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text() == text(), "run python tests/layer_page.py"


def test_every_layer_of_caffe_is_on_it() -> None:
    assert set(FACTS) == known_types() and set(WANTED.split()) <= set(FACTS)
    assert set(WANTED.split()) - {"Input", "Python"} <= set(LAYERS) | set(READERS)


def test_every_layer_that_runs_has_goldens_or_says_why_not() -> None:
    without = set(LAYERS) - set(golden_counts())
    forks = {"BN", "EltwiseAccuracy", "Interp", "Unpooling", "Upsample"}  # no layers of BVLC Caffe
    assert without <= {"HDF5Output"} | forks, without


def test_backward_is_said_as_it_is() -> None:
    from test_layer_gradients import NOT_DIFFERENTIABLE

    none = {kind for kind, fact in FACTS.items() if not fact.backward}
    assert none == NOT_DIFFERENTIABLE | (data_types() - {"Python"}) | {"Input"}
