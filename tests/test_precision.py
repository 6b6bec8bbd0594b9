"""Halves against float64 and float32, gradient checkpointing bit for bit with the memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import refused, run_in
from made_data import make_camvid
from torch.profiler import ProfilerActivity, profile

from caffe_weights.caffe_pb2 import SolverParameter
from caffe_weights.errors import InputError
from caffe_weights.export import read_weights
from caffe_weights.prototxt import parse_net
from reproduce.checkpointing import cut
from reproduce.net import Net
from reproduce.nets import Form, make_net
from reproduce.precision import DTYPES, Precision
from reproduce.run_files import interpolation, set_fillers
from reproduce.solver import Solver

SIZE = (96, 128)
FORM = Form(16, 16)


def ready(
    name: str, frame: bool | None = None, dropout: bool = True, form: Form = FORM
) -> tuple[Net, dict[str, torch.Tensor]]:
    """A narrow net in phase TRAIN with random weights, and a batch."""
    net = make_net(name, "train", form=form)
    set_fillers(net, "msra")
    for layer in net.layer:
        if layer.name.startswith("score") and layer.type == "Convolution":
            layer.convolution_param.weight_filler.type = "xavier"
        if layer.type == "Dropout" and not dropout:
            layer.dropout_param.dropout_ratio = 0
    rng = np.random.default_rng(0)
    batch = {"data": torch.tensor(rng.normal(0, 2, (1, 3, *SIZE)), dtype=torch.float32),
             "label": torch.tensor(rng.integers(0, 21, (1, 1, *SIZE)))}  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    made = Net(
        net, interpolation(name, form), "TRAIN", input_shapes=shapes, seed=0, strict=False, frame=frame
    )
    return made, batch


def gradients(
    net: Net, batch: dict[str, torch.Tensor], precision: str = "float32"
) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    how = Precision(precision)
    how.prepare(net)
    torch.manual_seed(1)
    with how.forward():
        loss = net.total_loss(net(**batch, keep=net.loss_weights))
    loss.backward()
    slots = [slot for slot in net.learnable() if slot.parameter().grad is not None]
    return loss.detach(), {slot.key: slot.parameter().grad.numpy().copy() for slot in slots}  # type: ignore


@pytest.mark.parametrize(
    ("name", "frame"), [("voc-fcn8s", None), ("voc-fcn8s", False), ("voc-fcn-googlenet-8s", None)]
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_checkpointing_gives_the_same_bits(name: str, frame: bool | None, precision: str) -> None:
    torch.set_num_threads(1)
    found = []
    for checkpointing in (False, True):
        net, batch = ready(name, frame)
        net.checkpointing = checkpointing
        found.append(gradients(net, batch, precision))
    (plain_loss, plain), (loss, again) = found
    assert torch.equal(plain_loss, loss)  # Dropout drew the same
    assert plain.keys() == again.keys() and len(plain) > 30
    for key, gradient in plain.items():
        np.testing.assert_array_equal(gradient, again[key], err_msg=key)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator had given out at once, above those at the beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    live = most = 0
    assert record.profiler is not None
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def test_checkpointing_takes_less_memory() -> None:
    torch.set_num_threads(1)
    most = {}
    for checkpointing in (False, True):
        net, batch = ready("voc-fcn8s", frame=False, form=Form(4, 16))
        net.checkpointing = checkpointing
        most[checkpointing] = peak_bytes(lambda net=net, batch=batch: gradients(net, batch))  # type: ignore[misc]
    assert most[True] < 0.85 * most[False], most  # the first stage alone holds nearly half of all blobs


def test_stages_end_where_maps_get_smaller() -> None:
    net, batch = ready("voc-fcn8s")
    stages = [[run.step.layer.name for run in stage] for stage in cut(net._plan(batch, ()).runs)]
    assert [stage[-1] for stage in stages[:-1]] == ["pool1", "pool2", "pool3", "pool4", "pool5"]
    assert stages[-1][0] == "fc6" and stages[-1][-1] == "loss"
    residual, batch = ready("voc-fcn32s-resnet34")
    firsts = [stage[0].step.layer.name for stage in cut(residual._plan(batch, ()).runs)]
    assert {"res3a_branch2a", "res4a_branch2a", "res5a_branch2a"} <= set(firsts)


STATEFUL = """
  layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 2 dim: 8 dim: 8 } } }
  layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
  layer { name: "conv" type: "Convolution" bottom: "bn" top: "conv"
    convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
  layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
  layer { name: "loss" type: "EuclideanLoss" bottom: "pool" bottom: "pool0" top: "loss" }
  """


def test_statistics_are_gathered_once() -> None:
    text = STATEFUL.replace('bottom: "pool0"', 'bottom: "zero"').replace(
        '  layer { name: "loss"',
        '  layer { name: "zero" type: "DummyData" top: "zero" dummy_data_param {'
        ' shape { dim: 3 dim: 2 dim: 3 dim: 3 } } }\n  layer { name: "loss"',
    )
    sums = []
    for checkpointing in (False, True):
        net = Net(parse_net(text), phase="TRAIN", seed=0)
        net.checkpointing = checkpointing
        x = np.random.default_rng(0).normal(size=(3, 2, 8, 8))
        net.total_loss(net(data=x)).backward()
        sums.append([p.detach().numpy().copy() for p in net.params["bn"]])
    for one, other in zip(*sums, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sums[1][2] == 1  # one forward pass


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 8), ("fp16", 11)])
def test_halves_round_and_losses_do_not(precision: str, digits: int) -> None:
    """Scores deviate from float64's by about the halves' rounding; the loss of the same scores does not."""
    torch.set_num_threads(1)
    net, batch = ready("voc-fcn8s", dropout=False)
    exact = Net(
        net.definition, net.weights(), "TRAIN", input_shapes={k: tuple(v.shape) for k, v in batch.items()}
    )
    with torch.no_grad():
        truth = exact.double()(**batch, keep=["score"])
    how = Precision(precision)
    how.prepare(net)
    with how.forward(), torch.no_grad():
        blobs = net(**batch, keep=["score"])
    scores = blobs["score"].double()
    assert blobs["score"].dtype == DTYPES[precision]
    error = float((scores - truth["score"]).abs().max() / truth["score"].abs().max())
    assert 2.0 ** -(digits + 4) < error < 2.0 ** -(digits - 6), error  # 20 layers, each rounds
    assert blobs["loss"].dtype == torch.float32
    label = batch["label"][:, 0].long()
    loss = torch.nn.functional.cross_entropy(scores, label, reduction="sum")
    assert float(blobs["loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_squares_and_exponentials_are_exact_also_in_place() -> None:
    text = """
      layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }
      layer { name: "conv" type: "Convolution" bottom: "data" top: "x"
        convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } } }
      layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "x" top: "y" }
      layer { name: "square" type: "Power" bottom: "y" top: "y" power_param { power: 2 } }
      layer { name: "exp" type: "Exp" bottom: "y" top: "y" exp_param { scale: -1 } }"""
    net = Net(parse_net(text), seed=0)
    how = Precision("bf16")
    how.prepare(net)
    with torch.no_grad(), how.forward():
        found = net(data=np.random.default_rng(0).normal(size=(1, 2, 6, 6)), keep=["x"])
    assert (found["x"].dtype, found["y"].dtype) == (torch.bfloat16, torch.float32)
    exact = np.exp(-((2 * found["x"].double().numpy()) ** 2))
    np.testing.assert_allclose(found["y"].numpy(), exact, rtol=1e-5)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.15), ("fp16", 0.02)])
def test_gradients_of_halves_are_near(precision: str, bound: float) -> None:
    torch.set_num_threads(1)
    _, exact = gradients(*ready("voc-fcn8s", dropout=False))
    net, batch = ready("voc-fcn8s", dropout=False)
    for layer in net.layers:  # a mean, as fp16 cannot hold the sum's gradients without a scale
        if layer.definition.type == "SoftmaxWithLoss":
            layer.mode = 1  # type: ignore[attr-defined]
    _, found = gradients(net, batch, precision)
    count = SIZE[0] * SIZE[1]
    for key in ("score_fr.weight", "fc6.weight", "conv5_3.weight"):
        assert found[key].dtype == np.float32
        error = np.linalg.norm(found[key] * count - exact[key]) / np.linalg.norm(exact[key])
        assert error < bound, (key, error)


NET = """
  layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }
  layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 dim: 1 dim: 6 dim: 6 } } }
  layer { name: "score" type: "Convolution" bottom: "data" top: "score"
    convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }
  layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }"""


def solver(folder: Path, precision: str, **options: object) -> Solver:
    param = SolverParameter(
        net_param=parse_net(NET), base_lr=0.05, lr_policy="fixed", momentum=0.9, random_seed=3, max_iter=20,
        clip_gradients=0.5, snapshot_prefix=str(folder / "s"))  # fmt: skip
    return Solver(param, precision=precision, **options)  # type: ignore[arg-type]


def batch(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    label = rng.integers(0, 3, (1, 1, 6, 6))
    return {
        "data": np.concatenate([label == 1, label == 2], 1) + rng.normal(0, 0.1, (1, 2, 6, 6)),
        "label": label,
    }


def test_a_scaled_loss_learns_and_its_scale_is_in_the_snapshot(tmp_path: Path) -> None:
    reference, scaled = solver(tmp_path, "float32"), solver(tmp_path, "fp16")
    for number in range(12):
        losses = [one.step(batch(number)) for one in (reference, scaled)]
        assert losses[1] == pytest.approx(
            losses[0], rel=0.01
        )  # 65536 times the loss would be clipped to naught
    assert losses[1] < 0.9
    assert scaled.precision.scaler is not None
    path = scaled.snapshot()
    rest = [scaled.step(batch(number)) for number in range(12, 16)]
    resumed = solver(tmp_path, "fp16")
    resumed.restore(path)
    assert [resumed.step(batch(number)) for number in range(12, 16)] == rest


def test_an_overflow_makes_no_update_and_lowers_the_scale(tmp_path: Path) -> None:
    made = solver(tmp_path, "fp16")
    scaler = made.precision.scaler
    assert scaler is not None
    before = made.net.weights()["score"][0].copy()
    large = {"data": np.full((1, 2, 6, 6), 60000.0), "label": batch(0)["label"]}
    made.step(large)
    np.testing.assert_array_equal(made.net.weights()["score"][0], before)
    assert scaler.get_scale() == 2.0**15
    made.step(batch(0))
    assert not np.array_equal(made.net.weights()["score"][0], before)
    assert made.iteration == 2


def test_float32_is_the_plain_way(tmp_path: Path) -> None:
    made = solver(tmp_path, "float32")
    plain = Net(parse_net(NET), made.net.weights(), phase="TRAIN")
    torch.testing.assert_close(made.net(**batch(0))["loss"], plain(**batch(0))["loss"], rtol=0, atol=0)
    assert made.precision.scaler is None and "scaler" not in made.states


def test_what_a_device_cannot_is_refused() -> None:
    with pytest.raises(InputError, match="--precision tf32: cpu, which has no TF32; wanted a CUDA device"):
        Precision("tf32", "cpu")
    with pytest.raises(InputError, match="unknown; wanted float32 or tf32"):
        Precision("int8")


def test_the_command_takes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    fcn = run_in(tmp_path, monkeypatch)
    make_camvid(tmp_path / "data", size=(24, 32))
    train = ("train", "voc-fcn32s", "--data", "camvid:data", "--init", "msra", "--lr", "1e-8", "--narrow",
             "32", "--fc", "8", "--workers", "0", "--iterations", "3")  # fmt: skip
    for out, more in (("plain", ()), ("check", ("--checkpoint",)), ("half", ("--precision", "bf16"))):
        done = fcn(*train, "--out", out, *more, "--score-every", "3")
        assert done.exit_code == 0, (done.stderr, done.exception)
    plain, check, half = (read_weights(tmp_path / out / "snapshot/train_iter_3.caffemodel")
                          for out in ("plain", "check", "half"))  # fmt: skip
    for name in plain:
        for one, other in zip(plain[name], check[name], strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(plain["score_fr"][0], half["score_fr"][0])
    score = ("evaluate", "voc-fcn32s", "--weights", "half/snapshot/train_iter_3.caffemodel", "--data",
             "camvid:data", "--narrow", "32", "--fc", "8", "--workers", "0")  # fmt: skip
    assert "pixel accuracy" in fcn(*score, "--precision", "bf16").stdout
    refused(fcn(*score, "--precision", "tf32"), "--precision tf32: cpu, which has no TF32")
    refused(fcn(*train, "--out", "x", "--precision", "tf32"), "--precision tf32")
    refused(fcn(*train, "--out", "x", "--device", "cuda:7"), "--device cuda:7")
    assert not (tmp_path / "x").exists()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
def test_checkpointing_on_a_card_draws_the_same_and_takes_less() -> None:
    found, most = [], []
    for checkpointing in (False, True):
        net, batch = ready("voc-fcn8s", form=Form(4, 64))
        net.to("cuda").checkpointing = checkpointing
        torch.backends.cudnn.deterministic = True
        torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(1)
        net.total_loss(net(**batch)).backward()
        most.append(torch.cuda.max_memory_allocated())
        found.append([slot.parameter().grad for slot in net.learnable() if slot.parameter().requires_grad])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert most[1] < most[0]


@needs_cuda
@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 1e-5), ("tf32", 5e-3), ("fp16", 5e-3), ("bf16", 4e-2)]
)
def test_precisions_on_a_card(precision: str, bound: float, tmp_path: Path) -> None:
    alone, made = solver(tmp_path, "float32"), solver(tmp_path, precision, device="cuda")
    losses = [[one.step(batch(number)) for number in range(6)] for one in (alone, made)]
    assert losses[1] == pytest.approx(losses[0], rel=bound)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
