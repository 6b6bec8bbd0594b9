"""DeconvNet of Noh, Hong and Han (ICCV 2015) in the five forms its authors released, and its two solvers.

Content as in the prototxts of HyeonwooNoh/DeconvNet at 87dd133, upgraded to today's form: `deploy`
(model/DeconvNet), `stage1` and `stage2` (training/001, 002), `statistics` and `test` (training/003). One
function builds them all: VGG16's convolutions with a BN behind each and pools that keep their masks, fc6
and fc7, and the same way back with unpooling and deconvolutions.

Departures: none for the published side of 224. Another multiple of 32 scales unpool sizes, the crop and the
pictures with it and makes fc6's kernel as large as pool5, as the published geometry has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffe_weights.caffe_pb2 import (
    TEST,
    TRAIN,
    BNParameter,
    LayerParameter,
    NetParameter,
    SolverParameter,
)
from caffe_weights.errors import NetError
from reproduce.nets.blocks import PUBLISHED, Form

SIDE, STRIDE = 224, 32
CLASSES, IGNORED = 21, 255
MEAN = (104.008, 116.669, 122.675)  # B, G, R
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, convolutions; a pool after each


@dataclass(frozen=True)
class Released:
    """One released prototxt. `phases` name a list each, with the side that its pictures are resized to.

    A data layer of None serves every phase. `tops`: BN hands its batch statistics out.
    """

    name: str
    data: str = ""  # layer type
    lists: str = ""  # folder
    phases: tuple[tuple[int | None, str, int], ...] = ()
    batch: int = 0
    inference: bool = False
    tops: bool = False
    accuracy: bool = False
    loss: bool = False


RELEASED = {
    "deploy": Released("DeconvNet_inference_deploy", inference=True),
    "stage1": Released("stage_1_training", "ImageSegData", "stage_1_train_imgset",
                       ((TRAIN, "train", 250), (TEST, "val", 250)), 8, accuracy=True, loss=True),
    "stage2": Released("stage_2_train", "WindowSegData", "stage_2_train_imgset",
                       ((TRAIN, "train", 250), (TEST, "val", 224)), 8, accuracy=True, loss=True),
    "statistics": Released("DeconvNet_make_bn_layer_testable", "WindowSegData", "stage_2_train_imgset",
                           ((None, "train", 250),), 28, tops=True),
    "test": Released("DeconvNet_inference_test.prototxt", "WindowSegData", "stage_2_train_imgset",
                     ((None, "val", 224),), 32, inference=True, accuracy=True),
}  # fmt: skip
SOLVERS = {"stage1": ("stage_1_train", 9000, 20000), "stage2": ("stage_2_train", 10000, 40000)}


def deconvnet(split: str, form: Form = PUBLISHED, side: int = SIDE) -> NetParameter:
    """The net in the form `split`, a key of `RELEASED`, for crops of side x side; a new message. NetError."""
    if split not in RELEASED:
        raise NetError(f"split {split}", "deconvnet has none", " or ".join(RELEASED))
    if side < STRIDE or side % STRIDE:
        raise NetError("size", f"{side}x{side}", f"a multiple of {STRIDE}", "five pools halve it")
    return _Builder(RELEASED[split], form, side).build()


def deconvnet_solver(split: str) -> SolverParameter:
    """The released solver of `stage1` or `stage2`; a new message."""
    name, step, last = SOLVERS[split]
    return SolverParameter(
        net=f"./{name}.prototxt", test_iter=[1000], test_interval=500, base_lr=0.01, lr_policy="step",
        gamma=0.1, stepsize=step, max_iter=last, momentum=0.9, weight_decay=0.0005, iter_size=8, display=1,
        snapshot=500, snapshot_prefix=f"./snapshot/{name}", solver_mode=SolverParameter.GPU,
    )  # fmt: skip


class _Builder:
    """The net as far as it is built; `top` is its last blob."""

    def __init__(self, released: Released, form: Form, side: int) -> None:
        self.released, self.form, self.side = released, form, side
        self.net = NetParameter(name=released.name)
        self.top = "data"

    def build(self) -> NetParameter:
        self.inputs()
        self.convolutions()
        self.deconvolutions()
        self.score()
        return self.net

    def layer(self, kind: str, name: str, bottoms: list[str], tops: list[str]) -> LayerParameter:
        self.top = tops[0]
        return self.net.layer.add(name=name, type=kind, bottom=bottoms, top=tops)

    def inputs(self) -> None:
        if not self.released.data:
            self.net.layer.add(name="input", type="Input", top=["data"]).input_param.shape.add(
                dim=(1, 3, self.side, self.side)
            )
        for phase, source, resized in self.released.phases:
            layer = self.net.layer.add(name="data", type=self.released.data, top=["data", "seg-label"])
            p = layer.image_data_param
            p.root_folder, p.source = "./VOC2012", f"./{self.released.lists}/{source}.txt"
            p.label_type, p.batch_size, p.shuffle = p.PIXEL, self.released.batch, True
            p.new_height = p.new_width = resized * self.side // SIDE
            layer.transform_param.mean_value.extend(MEAN)
            layer.transform_param.crop_size, layer.transform_param.mirror = self.side, True
            if phase is not None:
                layer.include.add(phase=phase)

    def convolutions(self) -> None:
        """conv1_1 to fc7."""
        for stage, (width, depth) in enumerate(STAGES, 1):
            for at in (f"{stage}_{place}" for place in range(1, depth + 1)):
                self.group("Convolution", f"conv{at}", f"bn{at}", f"relu{at}", self.form.width(width), 3, 1)
            name = f"pool{stage}"
            p = self.layer("Pooling", name, [self.top], [name, f"{name}_mask"]).pooling_param
            p.pool, p.kernel_size, p.stride = p.MAX, 2, 2
        for name, kernel in (("6", self.side // STRIDE), ("7", 1)):
            width = self.form.fully(4096)
            self.group("Convolution", f"fc{name}", f"bnfc{name}", f"relu{name}", width, kernel)

    def deconvolutions(self) -> None:
        """fc6-deconv to deconv1_2: each stage ends with the width of the one before it."""
        widths = [self.form.width(width) for width, _ in STAGES]
        name = "fc6-deconv"
        kernel = self.side // STRIDE
        self.group("Deconvolution", name, f"{name}-bn", f"{name}-relu", widths[-1], kernel)
        for stage in range(len(STAGES), 0, -1):
            name = f"unpool{stage}"
            p = self.layer("Unpooling", name, [self.top, f"pool{stage}_mask"], [name]).unpooling_param
            p.unpool, p.kernel_size, p.stride = p.MAX, 2, 2
            p.unpool_size = self.side >> stage - 1
            depth = STAGES[stage - 1][1]
            for place in range(1, depth + 1):
                at = f"{stage}_{place}"
                width = widths[max(0, stage - 1 - (place == depth))]
                self.group("Deconvolution", f"deconv{at}", f"debn{at}", f"derelu{at}", width, 3, 1)

    def score(self) -> None:
        score = self.window("Convolution", "seg-score-voc", "seg-score", self.form.head(CLASSES), 1, 0)
        _fill(score)
        if self.released.accuracy:
            layer = self.layer(
                "EltwiseAccuracy", "seg-accuracy", ["seg-score", "seg-label"], ["seg-accuracy"]
            )
            layer.eltwise_accuracy_param.ignore_label = IGNORED
            if self.released.loss:
                layer.include.add(phase=TEST)
        if self.released.loss:
            layer = self.layer("SoftmaxWithLoss", "seg-loss", ["seg-score", "seg-label"], ["seg-loss"])
            layer.loss_param.ignore_label = IGNORED

    def group(self, kind: str, name: str, bn: str, relu: str, width: int, kernel: int, pad: int = 0) -> None:
        """A convolution or deconvolution with its BN and ReLU, both in place."""
        layer = self.window(kind, name, name, width, kernel, pad)
        if kind == "Deconvolution":
            _fill(layer)
        statistics = [f"{bn}-mean", f"{bn}-var"] if self.released.tops else []
        p = self.layer("BN", bn, [name], [name, *statistics]).bn_param
        p.scale_filler.type, p.scale_filler.value = "constant", 1
        p.shift_filler.type, p.shift_filler.value = "constant", 0.001
        if self.released.inference:
            p.bn_mode = BNParameter.INFERENCE
        self.layer("ReLU", relu, [name], [name])

    def window(self, kind: str, name: str, top: str, width: int, kernel: int, pad: int) -> LayerParameter:
        layer = self.layer(kind, name, [self.top], [top])
        layer.param.add(lr_mult=1, decay_mult=1)
        layer.param.add(lr_mult=2, decay_mult=0)
        layer.convolution_param.num_output = width
        layer.convolution_param.kernel_size.append(kernel)
        if pad:
            layer.convolution_param.pad.append(pad)
        return layer


def _fill(layer: LayerParameter) -> None:
    p = layer.convolution_param
    p.weight_filler.type, p.weight_filler.std = "gaussian", 0.01
    p.bias_filler.type, p.bias_filler.value = "constant", 0
