"""Caffe's solvers as PyTorch optimizers.

Follows `src/caffe/solvers/{sgd,nesterov,adagrad,rmsprop,adadelta,adam}_solver.cpp` of BVLC/caffe at 9b891540.
One step does, in this order: clip the gradients by their global L2 norm, as they have been accumulated;
divide them by iter_size; add weight decay; turn each into an update; subtract it. The learning rate is
inside the update and so inside the velocity of SGD and Nesterov: after a change of rate, the old part of the
velocity keeps the old rate (torch.optim.SGD applies the new one to all of it).

Departures: a parameter without a gradient is left alone, as is PyTorch's custom, where Caffe would still
decay it; the norm for clipping is summed in float64 over the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_weights.errors import InputError

REGULARIZATIONS = ("L2", "L1")
PORTION = 1 << 18  # values that are updated together: every value is treated alone
Group = Mapping[str, Any]


class CaffeOptimizer(torch.optim.Optimizer):
    """What the six have in common; they differ in `update`.

    `params` are parameters or param groups. Options of a group: `lr` (Caffe's rate of the iteration: set it
    before each step, or use one of PyTorch's schedulers), `lr_mult`, `decay_mult`, `weight_decay`,
    `regularization` ("L2" or "L1") and those of the method. `clip_gradients` (negative: none) and
    `iter_size` hold for all groups: accumulate the gradients of iter_size backward passes, then step.
    InputError for options out of range.
    """

    histories: ClassVar[tuple[str, ...]] = ("history",)  # state tensors, in the order of Caffe's snapshots
    options: ClassVar[dict[str, float]] = {}  # those of the method, with Caffe's defaults

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        regularization: str = "L2",
        clip_gradients: float = -1.0,
        iter_size: int = 1,
        **options: float,
    ) -> None:
        unknown = [name for name in options if name not in self.options]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]}")
        defaults = {"lr": lr, "lr_mult": 1.0, "decay_mult": 1.0, "weight_decay": weight_decay,
                    "regularization": regularization, **self.options, **options}  # fmt: skip
        if iter_size < 1:
            raise InputError("iter_size", str(iter_size), "at least 1")
        if math.isnan(clip_gradients):
            raise InputError("clip_gradients", "nan", "a norm, or -1 for none")
        self.clip_gradients, self.iter_size = clip_gradients, iter_size
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in PyTorch, with the options checked."""
        self.check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def check(self, group: Group) -> None:
        """InputError where an option of a group is out of range."""
        if group["regularization"] not in REGULARIZATIONS:
            raise InputError("regularization_type", repr(group["regularization"]), "L2 or L1", "correct it")
        for name in ("lr", "weight_decay", *self.options):
            if not math.isfinite(group[name]):
                raise InputError(name, str(group[name]), "a finite number")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the accumulated gradients, which are left as they are; the closure's result."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        factor = self._clipping([p.grad for p, _ in pairs]) / self.iter_size
        for p, group in pairs:
            state = self.state_of(p)
            state["step"] += 1
            for part, grad, *histories in _portions(p, *(state[name] for name in self.histories)):
                grad = self._regularized(part, grad * factor if factor != 1 else grad, group)
                named = dict(zip(self.histories, histories, strict=True))
                part.sub_(self.update(grad, {**state, **named}, group))
        return loss

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        """The value to subtract from a parameter; brings its `state` forward. `grad` is left as it is."""
        raise NotImplementedError

    def state_of(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter: `step`, the count of updates, and a tensor for each of `histories`."""
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = 0
            state.update({name: torch.zeros_like(p) for name in self.histories})
        return state

    def _regularized(self, p: Tensor, grad: Tensor, group: Group) -> Tensor:
        decay = group["weight_decay"] * group["decay_mult"]
        if not decay:
            return grad
        return grad.add(p.sign() if group["regularization"] == "L1" else p, alpha=decay)

    def _clipping(self, grads: list[Tensor]) -> float:
        if self.clip_gradients < 0 or not grads:
            return 1.0
        norms = [torch.linalg.vector_norm(grad).double().to(grads[0].device) for grad in grads]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        return self.clip_gradients / norm if norm > self.clip_gradients else 1.0


class SGD(CaffeOptimizer):
    """h <- momentum h + rate g; w <- w - h."""

    options: ClassVar[dict[str, float]] = {"momentum": 0.0}

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        history: Tensor = state["history"]
        return history.mul_(group["momentum"]).add_(grad, alpha=_rate(group))


class Nesterov(CaffeOptimizer):
    """h as in SGD; w <- w - ((1 + momentum) h - momentum h_before)."""

    options: ClassVar[dict[str, float]] = {"momentum": 0.0}

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        history, momentum = state["history"], group["momentum"]
        before = history * momentum
        history.mul_(momentum).add_(grad, alpha=_rate(group))
        return history * (1 + momentum) - before


class AdaGrad(CaffeOptimizer):
    """h <- h + g^2; w <- w - rate g / (sqrt(h) + delta)."""

    options: ClassVar[dict[str, float]] = {"delta": 1e-8}

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        history = state["history"].addcmul_(grad, grad)
        return grad / history.sqrt().add_(group["delta"]) * _rate(group)


class RMSProp(CaffeOptimizer):
    """h <- rms_decay h + (1 - rms_decay) g^2; w <- w - rate g / (sqrt(h) + delta)."""

    options: ClassVar[dict[str, float]] = {"rms_decay": 0.99, "delta": 1e-8}

    def check(self, group: Group) -> None:
        super().check(group)
        _check_fraction("rms_decay", group)

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        history = _average(state["history"], grad, group["rms_decay"])
        return grad / history.sqrt().add_(group["delta"]) * _rate(group)


class AdaDelta(CaffeOptimizer):
    """Averages G of g^2 and U of u^2 by momentum; u = g sqrt((U + delta) / (G + delta)); w <- w - rate u."""

    histories: ClassVar[tuple[str, ...]] = ("history", "updates")
    options: ClassVar[dict[str, float]] = {"momentum": 0.0, "delta": 1e-8}

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        gradients = _average(state["history"], grad, group["momentum"])
        ratio = (state["updates"] + group["delta"]).div_(gradients + group["delta"])
        update = ratio.sqrt_().mul_(grad)
        _average(state["updates"], update, group["momentum"])
        return update.mul_(_rate(group))


class Adam(CaffeOptimizer):
    """Averages m of g, v of g^2; w <- w - rate c m / (sqrt(v) + delta), c the correction of their start.

    c is sqrt(1 - momentum2^t) / (1 - momentum^t) at the t-th update; delta is added to the root of the
    uncorrected v, where torch.optim.Adam adds eps to the corrected one.
    """

    histories: ClassVar[tuple[str, ...]] = ("history", "squares")
    options: ClassVar[dict[str, float]] = {"momentum": 0.0, "momentum2": 0.999, "delta": 1e-8}

    def check(self, group: Group) -> None:
        super().check(group)
        _check_fraction("momentum", group)
        _check_fraction("momentum2", group)

    def update(self, grad: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        beta1, beta2, t = group["momentum"], group["momentum2"], state["step"]
        mean = state["history"].mul_(beta1).add_(grad, alpha=1 - beta1)
        squares = _average(state["squares"], grad, beta2)
        correction = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return mean / squares.sqrt().add_(group["delta"]) * (_rate(group) * correction)


# Caffe's solver type -> class
OPTIMIZERS: dict[str, type[CaffeOptimizer]] = {
    "SGD": SGD,
    "Nesterov": Nesterov,
    "AdaGrad": AdaGrad,
    "RMSProp": RMSProp,
    "AdaDelta": AdaDelta,
    "Adam": Adam,
}


def _portions(p: Tensor, *histories: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """A parameter with its gradient and histories; on a CPU in portions that its cache holds."""
    assert p.grad is not None
    tensors = p, p.grad, *histories
    if not p.is_cpu or p.numel() <= PORTION or not all(t.is_contiguous() for t in tensors):
        return [tensors]
    return zip(*(t.view(-1).split(PORTION) for t in tensors), strict=True)


def _rate(group: Group) -> float:
    return float(group["lr"] * group["lr_mult"])


def _average(average: Tensor, value: Tensor, keep: float) -> Tensor:
    """In place: `keep` of the average of squares, and the square of `value` for the rest."""
    return average.mul_(keep).addcmul_(value, value, value=1 - keep)


def _check_fraction(name: str, group: Group) -> None:
    if not 0 <= group[name] < 1:
        raise InputError(name, f"{group[name]:g}", "at least 0 and below 1")
