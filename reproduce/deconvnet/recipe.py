"""Training DeconvNet in its two stages: nets, solvers and starts as released, on data made by `stages`.

Follows the prototxts and solver.cpp of HyeonwooNoh/DeconvNet at 87dd133 and HyeonwooNoh/caffe at d9e8494a.
`faithful` takes over two accidents of that fork. Weight decay is added once an iteration and then divided by
iter_size with the gradients: the same update as an iter_size-th of the decay, which is how it is written
into the run's solver. And the gradients of BN's scale and shift are overwritten, not added up: only those of
the last of the iter_size batches count, still divided by iter_size. Otherwise both are as in Caffe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from caffe_weights.caffe_pb2 import TEST, FillerParameter, NetParameter, SolverParameter
from caffe_weights.errors import FileError, InputError
from caffe_weights.export import read_weights
from caffe_weights.files import as_file_error, replace_file
from caffe_weights.prototxt import format_net, format_solver
from caffe_weights.weights import Weights
from reproduce.deconvnet.seg_data import WORDS
from reproduce.deconvnet.stages import STAGE_1, STAGE_2
from reproduce.net import Net
from reproduce.nets.blocks import PUBLISHED, Form
from reproduce.nets.deconvnet import SIDE, deconvnet, deconvnet_solver
from reproduce.run_files import DEPLOY, SOLVER, TRAIN, changed
from reproduce.snapshots import latest_snapshot
from reproduce.train import PREFIX, Training, check_new
from surgery.shapes import infer_shapes

WINDOWS = ("Convolution", "Deconvolution")
STAGES = {"stage1": STAGE_1, "stage2": STAGE_2}  # split of the net -> folder of its lists


@dataclass(frozen=True)
class Stage:
    """What is trained: `name` is a key of STAGES, `data` the folder that `stages` wrote, `init` a filler for
    the convolutions that the released net leaves to VGG's weights (own: none). `batch` replaces the
    released 8.

    A narrow form takes `init` for the way back, too. The released gaussian of 0.01 is half of what msra gives
    at a width of 512, but a twelfth at 16; BN hides that going forward, while each step of the
    solver becomes a hundred times as large next to the weights, and no class is learned.
    """

    name: str
    data: Path
    form: Form = PUBLISHED
    side: int = SIDE
    init: str = "own"
    faithful: bool = False
    batch: int | None = None

    def net(self) -> NetParameter:
        """The released net on the lists in `data`; without its test form where there is no list val.txt."""
        net = deconvnet(self.name, self.form, self.side)
        for layer in list(net.layer):
            testing = any(rule.phase == TEST for rule in layer.include)
            if testing and not self._list("val").is_file():
                net.layer.remove(layer)
            elif layer.type in WORDS:
                p = layer.image_data_param
                p.batch_size = self.batch or p.batch_size
                p.root_folder = str(self.data.resolve())
                p.source = str(self._list(Path(p.source).stem).resolve())
            elif layer.type in WINDOWS and self.init != "own":
                given = layer.convolution_param.HasField("weight_filler")
                if self.form.narrow > 1 or not given:
                    layer.convolution_param.weight_filler.CopyFrom(FillerParameter(type=self.init))
        return net

    def solver(self, changes: list[str]) -> SolverParameter:
        """The released solver with changes `field=value`, of the net in train.prototxt."""
        solver = deconvnet_solver(self.name)
        solver.ClearField("snapshot_prefix")
        solver = changed(solver, changes)
        if not solver.test_interval or not self._list("val").is_file():
            for unused in ("test_iter", "test_interval"):
                solver.ClearField(unused)
        solver.net = TRAIN
        if self.faithful:
            solver.weight_decay /= solver.iter_size
        return solver

    def check(self) -> None:
        """FileError unless the list of training is there."""
        if not self._list("train").is_file():
            raise FileError(str(self._list("train")), "no such list", "the data of fcn data deconvnet")

    def _list(self, name: str) -> Path:
        return self.data / STAGES[self.name] / f"{name}.txt"


def stage_training(
    stage: Stage,
    out: Path,
    start: str | Path | Weights | None,
    changes: list[str],
    resume: bool = False,
    **how: Any,
) -> Training:
    """A run of a stage in the folder `out`, from VGG's weights or those of stage 1; `how` as in Training.

    InputError and its kinds for all that is found wrong before the first iteration.
    """
    stage.check()
    check_new(out, resume)
    net, solver = stage.net(), stage.solver(changes)
    begun = resume and latest_snapshot(out / PREFIX) is not None
    weights = None if begun or start is None else fitted(start, net)
    _write(out, {TRAIN: format_net(net), SOLVER: format_solver(solver),
                 DEPLOY: format_net(deconvnet("deploy", stage.form, stage.side))})  # fmt: skip
    training = Training(solver, out, weights, folder=out, resume=resume, **how)
    if stage.faithful:
        if training.solver.processes > 1:
            raise InputError("--faithful", f"{training.solver.processes} processes", "one",
                             "the last batch's gradients are those of a single process")  # fmt: skip
        keep_last_gradients(training.solver.net)
    return training


def fitted(start: str | Path | Weights, net: NetParameter) -> Weights:
    """Weights in the shapes of the net, where sizes agree: VGG16's fc6 and fc7 become convolutions."""
    weights = start if isinstance(start, Weights) else read_weights(start)
    wanted = {name: layer.params for name, layer in _layers(net)}

    def shaped(blob: np.ndarray, shapes: Any, index: int) -> np.ndarray:
        shape = shapes[index] if index < len(shapes) else blob.shape
        return blob.reshape(shape) if blob.size == int(np.prod(shape)) else blob

    return Weights({name: [shaped(blob, wanted[name], i) for i, blob in enumerate(blobs)]
                    for name, blobs in weights.items() if name in wanted})  # fmt: skip


def keep_last_gradients(net: Net) -> None:
    """Let the gradient of each BN blob be that of the last backward pass, where others add up."""
    kinds = {layer.name: layer.type for layer in net.definition.layer}
    for slot in net.learnable():
        if kinds.get(slot.layer) == "BN":
            _overwrite(slot.parameter())


def _overwrite(parameter: nn.Parameter) -> None:
    last: list[Tensor] = []

    def remember(gradient: Tensor) -> None:
        last[:] = [gradient]

    def replace(owner: Tensor) -> None:
        assert owner.grad is not None
        owner.grad.copy_(last.pop())

    parameter.register_hook(remember)
    parameter.register_post_accumulate_grad_hook(replace)


def _layers(net: NetParameter) -> Iterator[tuple[str, Any]]:
    layer = next(layer for layer in net.layer if layer.type in WORDS)
    side, batch = layer.transform_param.crop_size, layer.image_data_param.batch_size
    shapes = {layer.top[0]: (batch, 3, side, side), layer.top[1]: (batch, 1, side, side)}
    trained = NetParameter()
    trained.layer.extend(item for item in net.layer if not any(rule.phase == TEST for rule in item.include))
    yield from infer_shapes(trained, shapes).layers.items()


def _write(out: Path, files: dict[str, str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_file_error(out, error) from None
    for name, text in files.items():
        with replace_file(out / name, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
