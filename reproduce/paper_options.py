"""What the FCN papers tried in training, as changes of a net, so that its prototxt says all of a run.

Class balancing and patch sampling: sections 3.4 and 4.3 of the CVPR 2015 paper, which weights the loss or
leaves out terms of it. Interpolation: section 3.3, where all up-sampling but the last is learned from the
bilinear start; the published nets fix all of it. The last layer alone: FCN-32s-fixed of Table 2.

The paper has no code for these. Balancing is written as Caffe's own InfogainLoss with a diagonal matrix
(`reproduce.balance`), so that Caffe can train the same net; sampling as void labels, by the data layer
(`reproduce.data.transforms`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from caffe_weights.caffe_pb2 import LayerParameter, LossParameter, NetParameter, ParamSpec
from caffe_weights.errors import InputError

SOFTMAX, BALANCED = "SoftmaxWithLoss", "InfogainLoss"
UP = "Deconvolution"
MOST_SAMPLING = 1000  # times as many pictures


@dataclass(frozen=True)
class PaperOptions:
    """What to change in a net. `sample` is the probability that a term of the loss stays.

    `learn_interpolation` None leaves the learning rates of up-sampling as they are, `dropout` None the net's
    probability that a unit is left out.
    """

    sample: float = 1.0
    learn_interpolation: bool | None = None
    only_last: bool = False
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 < self.dropout < 1:
            raise InputError("--dropout", f"{self.dropout:g}", "a probability above 0 and below 1")
        if not 1 / MOST_SAMPLING <= self.sample <= 1:
            raise InputError("--sample", f"{self.sample:g}", f"a probability, {1 / MOST_SAMPLING:g} to 1")

    def change(self, net: NetParameter) -> None:
        """Change `net` where it stands. InputError where it has nothing that could be changed so."""
        if self.only_last:
            fix_all_but_scores(net)
        if self.learn_interpolation is not None:
            set_interpolation(net, self.learn_interpolation)
        if self.sample < 1:
            scale_sums(net, 1 / self.sample)
        if self.dropout is not None:
            set_dropout(net, self.dropout)


def equivalent_momentum(momentum: float, batch: float, other: float) -> float:
    """The momentum that fades a picture's gradient as fast in batches of `other` as `momentum` in `batch`.

    p^(other / batch): 0.9 in batches of 20 is 0.9^(1/20), near 0.9947, in batches of 1. InputError for a
    momentum outside of [0, 1) or a batch that is not positive.
    """
    if not 0 <= momentum < 1:
        raise InputError("momentum", f"{momentum:g}", "a number from 0 to below 1")
    if min(batch, other) <= 0:
        raise InputError("batch", f"{min(batch, other):g}", "a positive number of pictures")
    return float(momentum ** (other / batch))


def parse_momentum(text: str, batch: int) -> float:
    """The momentum in `0.99`, or in `0.9@20`: 0.9 in batches of 20, made equivalent for `batch` pictures."""
    momentum, at, other = text.partition("@")
    try:
        value, size = float(momentum), float(other) if at else batch
    except ValueError:
        raise InputError("--momentum", repr(text), "P, or P@K for the momentum P of batches of K") from None
    return equivalent_momentum(value, size, batch)


def set_interpolation(net: NetParameter, learned: bool) -> None:
    """Let all up-sampling but the last learn, or none. InputError where there is only the last."""
    between = up_between(net)
    if learned and not between:
        raise InputError("--learn-interpolation", "no up-sampling but the last, which stays bilinear",
                         "a net of stride 16 or 8")  # fmt: skip
    for layer in net.layer:
        if layer.type == UP:
            del layer.param[:]
            layer.param.add(lr_mult=float(learned and layer.name in between))


def up_between(net: NetParameter) -> set[str]:
    """The up-sampling layers of a net that are not the last before a loss."""
    last = _last_up(net)
    return {layer.name for layer in net.layer if layer.type == UP and layer.name not in last}


def fix_all_but_scores(net: NetParameter) -> None:
    """Learning rate and decay 0 for every parameter but those of the score layers."""
    for layer in net.layer:
        if layer.name.startswith("score") and layer.type == "Convolution":
            continue
        count = _parameters(layer)
        if count and layer.type != UP:
            del layer.param[:]
            layer.param.extend([ParamSpec(lr_mult=0, decay_mult=0)] * count)
        elif count:
            for param in layer.param:
                param.lr_mult = 0


def set_dropout(net: NetParameter, ratio: float) -> None:
    """The probability of every Dropout layer. InputError where there is none."""
    found = [layer for layer in net.layer if layer.type == "Dropout"]
    if not found:
        raise InputError("--dropout", "no Dropout layer", "a net that has one")
    for layer in found:
        layer.dropout_param.dropout_ratio = ratio


def scale_sums(net: NetParameter, factor: float) -> None:
    """Multiply the losses that are sums; one that is a mean over the pixels that count needs it not."""
    for layer in losses(net):
        if is_sum(layer.loss_param):
            weight = (layer.loss_weight or [1.0])[0]
            layer.loss_weight[:] = [weight * factor, *layer.loss_weight[1:]]


def balance_losses(net: NetParameter, gains: Mapping[str, Path]) -> None:
    """Weight the classes of each loss by the diagonal of a matrix in a file, by the blob of its labels.

    SoftmaxWithLoss becomes InfogainLoss, which is the same but for the weight of a pixel's class; a sum stays
    a sum, and a mean is over pixels, not over weights.
    """
    for layer in losses(net):
        layer.type = BALANCED
        param = layer.loss_param
        if param.HasField("normalize"):  # which Caffe refuses in an InfogainLoss
            if not param.HasField("normalization"):
                param.normalization = LossParameter.VALID if param.normalize else LossParameter.BATCH_SIZE
            param.ClearField("normalize")
        layer.infogain_loss_param.source = str(gains[layer.bottom[1]])
        if layer.HasField("softmax_param"):
            layer.infogain_loss_param.axis = layer.softmax_param.axis
            layer.ClearField("softmax_param")


def losses(net: NetParameter) -> list[LayerParameter]:
    """The softmax losses of a net."""
    return [layer for layer in net.layer if layer.type == SOFTMAX]


def is_sum(param: LossParameter) -> bool:
    """Whether a loss is summed over pixels, or divided by a number that void pixels do not lower."""
    if param.HasField("normalization") or not param.HasField("normalize"):
        return param.normalization != LossParameter.VALID
    return not param.normalize


def _last_up(net: NetParameter) -> set[str]:
    """The up-sampling layers that a loss reads with nothing but a Crop between."""
    makers = {top: layer for layer in net.layer for top in layer.top}
    return {layer.name for layer in _behind_crops(net, makers) if layer.type == UP}


def _behind_crops(net: NetParameter, makers: Mapping[str, LayerParameter]) -> Iterable[LayerParameter]:
    for loss in losses(net):
        maker = makers[loss.bottom[0]]
        while maker.type == "Crop":
            maker = makers[maker.bottom[0]]
        yield maker


def _parameters(layer: LayerParameter) -> int:
    """How many parameter blobs a solver would move."""
    if layer.type in ("Convolution", UP):
        return 1 + layer.convolution_param.bias_term
    if layer.type == "InnerProduct":
        return 1 + layer.inner_product_param.bias_term
    if layer.type == "Scale":
        return 1 + layer.scale_param.bias_term if len(layer.bottom) == 1 else int(layer.scale_param.bias_term)
    return int(layer.type in ("Bias", "PReLU"))
