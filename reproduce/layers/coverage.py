"""What is said of each layer type on the page docs/layers.md: facts, and the page made from them.

`tests/layer_page.py` writes the page, since the evidence (goldens, gradient checks, oracles) lies there; a
test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SAME = "alike"


class Fact(NamedTuple):
    """`exact`: where it is PyTorch's own kernel, what is done besides, and where it departs from Caffe.

    `phases`: what differs between TRAIN and TEST. `backward` false: there is no gradient, as in Caffe.
    """

    exact: str
    phases: str = SAME
    backward: bool = True


FACTS: dict[str, Fact] = {
    "AbsVal": Fact("PyTorch's; gradient 0 at 0 in both"),
    "Accuracy": Fact("a tie counts as wrong; a label out of range is an error", backward=False),
    "ArgMax": Fact("the larger index wins a tie, PyTorch's choice is open", backward=False),
    "BN": Fact("of DeconvNet's fork: PyTorch's kernel on the batch's statistics, or scale and shift alone"),
    "BNLL": Fact("PyTorch's log-sigmoid, mirrored"),
    "BatchNorm": Fact(
        "PyTorch's kernel with Caffe's unnormalised sums and their factor (0 means mean and variance 0)",
        "TRAIN uses the batch and grows the sums, unless use_global_stats says otherwise",
    ),
    "BatchReindex": Fact("an index out of range is an error; runs under force_backward, Caffe's aborts"),
    "Bias": Fact("a broadcast sum"),
    "Clip": Fact("PyTorch's; the gradient passes on the bounds"),
    "Concat": Fact("PyTorch's"),
    "ContrastiveLoss": Fact("Caffe's distance + 1e-4 in the gradient, so that equal pairs stay finite"),
    "Convolution": Fact("PyTorch's, 1 to 3 spatial axes; a kernel a little over its input makes one output"),
    "Crop": Fact("a view"),
    "Data": Fact("LMDB only; see Sources", "TRAIN crops at random", backward=False),
    "DenseImageData": Fact("of SegNet's fork; not read: its tops are inputs", backward=False),
    "Deconvolution": Fact("PyTorch's, 1 to 3 spatial axes"),
    "Dropout": Fact("PyTorch's, each value alone; another generator than Caffe's", "the identity in TEST"),
    "DummyData": Fact("Caffe's distributions from another generator", backward=False),
    "ELU": Fact("PyTorch's"),
    "Eltwise": Fact("MAX: the second of the first two bottoms wins a tie; PROD: always the stable gradient"),
    "EltwiseAccuracy": Fact(
        "of DeconvNet's fork; of equal scores the higher class is better", backward=False
    ),
    "Embed": Fact("PyTorch's; an index out of range is an error"),
    "EuclideanLoss": Fact("half the squares over the batch size"),
    "Exp": Fact("PyTorch's exponential, base and shift folded in as Caffe does"),
    "Filter": Fact("runs under force_backward, Caffe's aborts"),
    "Flatten": Fact("a view"),
    "HDF5Data": Fact("rows cross files; see Sources", backward=False),
    "HDF5Output": Fact("further passes add rows, where Caffe fails", backward=False),
    "HingeLoss": Fact("L1 and L2, over the batch size"),
    "Im2col": Fact("a view and a copy, any number of axes; PyTorch's unfold knows two"),
    "ImageData": Fact(
        "resized within one grey level of OpenCV; see Sources", "TRAIN crops at random", backward=False
    ),
    "ImageSegData": Fact("of DeconvNet's fork; not read by the net: its tops are inputs", backward=False),
    "InfogainLoss": Fact("bounded logarithm with an unbounded gradient; the matrix itself gets none"),
    "InnerProduct": Fact("PyTorch's, over all axes from `axis` on, and transposed weights"),
    "Input": Fact("given by name in the call", backward=False),
    "Interp": Fact(
        "PyTorch's, corners aligned; of DeepLab's fork, not of 1.0; a second bottom may say the size"
    ),
    "LRN": Fact(
        "across: PyTorch's; within a channel: mean of squares by PyTorch's pooling, k is 1 whatever is set"
    ),
    "LSTM": Fact(
        "a loop over steps; state is carried between passes, exposed states have no gradient, as in Caffe"
    ),
    "LSTMUnit": Fact("one step, gates i, f, o, g"),
    "Log": Fact("PyTorch's logarithm"),
    "MVN": Fact("a backward pass of its own: Caffe's takes deviation + eps for the deviation"),
    "MemoryData": Fact("arrays handed over with `net.source(name).reset`", backward=False),
    "MultinomialLogisticLoss": Fact("bounded probability with an unbounded gradient"),
    "PReLU": Fact("PyTorch's"),
    "Parameter": Fact("the blob itself"),
    "Pooling": Fact(
        "PyTorch's kernels; its own padding and windows where stride is over the kernel or padding over half "
        "of it; NaN never wins; empty windows have gradient 0 (Caffe writes out of bounds); masks are "
        "exact in any precision",
        "STOCHASTIC draws in TRAIN, takes the weighted mean in TEST",
    ),
    "Power": Fact("PyTorch's power; the true derivative where Caffe's is 0 / 0"),
    "Python": Fact("a class registered for module and layer; nothing is imported; see own-layers.md"),
    "RNN": Fact("a loop over steps; state as in LSTM"),
    "ReLU": Fact("PyTorch's; the slope serves 0"),
    "Reduction": Fact("PyTorch's sums"),
    "Reshape": Fact("a view where it can be"),
    "SPP": Fact("as Pooling", "as Pooling"),
    "Scale": Fact("a broadcast product and sum"),
    "Sigmoid": Fact("PyTorch's"),
    "SigmoidCrossEntropyLoss": Fact(
        "PyTorch's; targets are cut to whole numbers before ignore_label, as Caffe does"
    ),
    "Silence": Fact("nothing", backward=False),
    "Slice": Fact("views"),
    "Softmax": Fact("PyTorch's"),
    "SoftmaxWithLoss": Fact(
        "PyTorch's log-softmax; loss bounded at 87.3365, gradient not; all four normalizations and the "
        "older flag; a second top is accepted, which Caffe cannot build"
    ),
    "Split": Fact("nothing is copied; gradients add up"),
    "Swish": Fact("x sigmoid(beta x)"),
    "TanH": Fact("PyTorch's"),
    "Threshold": Fact("1 above the threshold, else 0", backward=False),
    "Tile": Fact("PyTorch's"),
    "Unpooling": Fact(
        "of DeconvNet's fork, by a mask, MAX, AVE or TILE; a mask out of range is an error; see deconvnet.md"
    ),
    "Upsample": Fact("of SegNet's fork: Unpooling by a mask"),
    "WindowData": Fact("not read: its tops are inputs, given by name", backward=False),
    "WindowSegData": Fact("of DeconvNet's fork; not read by the net: its tops are inputs", backward=False),
}

HEAD = """# Every layer of BVLC Caffe 1.0

Written by `python tests/layer_page.py`; a test says when it is stale.

All of them run forward, but those whose tops are inputs. The columns:

* **backward**: whether a gradient flows, by PyTorch's automatic differentiation or, where Caffe's rule is
  not the derivative, by a function of our own.
* **phases**: what differs between TRAIN and TEST.
* **goldens**: recorded results of BVLC Caffe 1.0 that the layer is compared with
  (tests/test_golden_layers.py), with bottom and parameter gradients wherever Caffe has them. `pytest
  --goldens DIR` takes another set.
* **also**: `gradcheck`: finite differences in float64 (tests/test_layer_gradients.py); `oracle`: loops in
  float64 numpy over a product of settings (tests/test_layer_oracles.py); `files`: small files made by the
  test (tests/test_layer_sources.py, test_layer_pictures.py).

Bad settings are refused when the net is made, with layer, field, found and wanted:
tests/test_layer_errors.py draws random settings of every type, which are refused in words or run both
ways.

| layer | backward | phases | exactness | goldens | also |
|---|---|---|---|---|---|
"""

TAIL = """
## Sources

`Data`, `HDF5Data`, `ImageData` and `MemoryData` read by themselves: a call of the net that gives none of
their tops gets the next batch, `net()`. Their shapes come from the source. A call that gives a top by
name reads nothing; where the source does not exist, the tops are inputs like any other (`net.fed` lists
what a call has to give). `Data` reads LMDB with the optional package lmdb (`pip install
'fcn-reproduce[lmdb]'`), not LevelDB; open only databases that you trust, since the LMDB library does.
`transform_param` crops, mirrors, takes off the mean and scales as data_transformer.cpp does. Pictures are
turned upright by their EXIF tag and lose their transparency, departures that hold for all our readers.
`Python` layers without bottoms and `WindowData` are inputs.
"""


def page(goldens: Mapping[str, int], also: Mapping[str, str]) -> str:
    """The page, for the number of golden cases of each type and what else shows it."""
    rows = [
        f"| {kind} | {'yes' if fact.backward else 'none'} | {fact.phases} | {fact.exact} "
        f"| {goldens.get(kind) or ''} | {also.get(kind, '')} |"
        for kind, fact in FACTS.items()
    ]
    return HEAD + "\n".join(rows) + "\n" + TAIL
