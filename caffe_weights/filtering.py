"""Which layers a net has in a given state, and the Split layers that Caffe adds by itself.

Follows Net::FilterNet and Net::StateMeetsRule (src/caffe/net.cpp) and src/caffe/util/insert_splits.cpp of
BVLC/caffe, commit 9b891540. Departure: a top that two layers make is found here, in words, and not
when the layers are built.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from caffe_weights.caffe_pb2 import LayerParameter, NetParameter, NetState, NetStateRule
from caffe_weights.errors import NetError

_Top = tuple[int, int]  # index of a layer, index of one of its tops


def filter_net(
    net: NetParameter, phase: str | None = "TEST", level: int = 0, stages: Iterable[str] = ()
) -> NetParameter:
    """A new net of the layers whose rules the state meets; the result's `state` is that state.

    The phase ("TRAIN" or "TEST") and the level replace those in `net.state`, the stages are added to its
    own. With phase None, `net.state` is taken as it is (TEST, level 0 where it says nothing). NetError
    for another phase and for a layer with both include and exclude rules.
    """
    new = NetParameter()
    new.CopyFrom(net)
    if phase is not None:
        if phase not in ("TRAIN", "TEST"):
            raise NetError("net", f"phase '{phase}'", "TRAIN or TEST")
        new.state.MergeFrom(NetState(phase=phase, level=level, stage=stages))
    kept = [layer for layer in new.layer if _is_included(layer, new.state)]
    if len(kept) < len(new.layer):
        new.ClearField("layer")
        new.layer.extend(kept)
    return new


def insert_splits(net: NetParameter) -> NetParameter:
    """A new net where each top that several bottoms read passes a Split layer right behind its maker.

    Layer `<blob>_<maker>_<index of the top>_split` has one top a reader, `<its name>_<k>`, in the order
    of reading. A loss weight counts as the first reader and moves to the split. The net must be
    filtered. NetError for a bottom that no earlier layer makes and for a top made twice other than
    in place.
    """
    sources, readers, weights = _trace(net)
    next_reader: Counter[_Top] = Counter()
    new = NetParameter()
    new.CopyFrom(net)
    new.ClearField("layer")
    for i, old in enumerate(net.layer):
        layer = new.layer.add()
        layer.CopyFrom(old)
        for j, blob in enumerate(old.bottom):
            top = sources[i, j]
            if readers[top] > 1:
                layer.bottom[j] = f"{_split_name(net, top, blob)}_{next_reader[top]}"
                next_reader[top] += 1
        for j, blob in enumerate(old.top):
            if readers[i, j] > 1:
                weight = weights.get((i, j), 0.0)
                _add_split(new, _split_name(net, (i, j), blob), blob, readers[i, j], weight)
                if weight:
                    layer.ClearField("loss_weight")  # of all tops, as Caffe does
                    next_reader[i, j] = 1
    _check_makers(net, new)
    return new


def _is_included(layer: LayerParameter, state: NetState) -> bool:
    if layer.include and layer.exclude:
        raise NetError(f"layer {layer.name}", "both include and exclude rules", "one of the two kinds")
    if layer.include:
        return any(_meets(state, rule) for rule in layer.include)
    return not any(_meets(state, rule) for rule in layer.exclude)


def _meets(state: NetState, rule: NetStateRule) -> bool:
    """Whether all that the rule sets holds."""
    return not (
        (rule.HasField("phase") and rule.phase != state.phase)
        or (rule.HasField("min_level") and state.level < rule.min_level)
        or (rule.HasField("max_level") and state.level > rule.max_level)
        or any(stage not in state.stage for stage in rule.stage)
        or any(stage in state.stage for stage in rule.not_stage)
    )


def _trace(net: NetParameter) -> tuple[dict[_Top, _Top], Counter[_Top], dict[_Top, float]]:
    """The top that each bottom reads, the number of readers of each top, the loss weights of tops."""
    latest: dict[str, _Top] = {}
    sources: dict[_Top, _Top] = {}
    readers: Counter[_Top] = Counter()
    weights: dict[_Top, float] = {}
    for i, layer in enumerate(net.layer):
        for j, blob in enumerate(layer.bottom):
            if blob not in latest:
                raise _unknown_bottom(layer, blob, latest)
            sources[i, j] = latest[blob]
            readers[latest[blob]] += 1
        latest.update({blob: (i, j) for j, blob in enumerate(layer.top)})
        for blob, weight in zip(layer.top, layer.loss_weight, strict=False):
            weights[latest[blob]] = weight
            readers[latest[blob]] += weight != 0
    return sources, readers, weights


def _unknown_bottom(layer: LayerParameter, blob: str, known: Iterable[str]) -> NetError:
    near = difflib.get_close_matches(blob, list(known), n=3)
    do = f"did you mean {' or '.join(near)}?" if near else "add a layer that makes it, or an Input layer"
    return NetError(f"layer {layer.name}", f"unknown bottom '{blob}'", "a top of an earlier layer", do)


def _split_name(net: NetParameter, top: _Top, blob: str) -> str:
    return f"{blob}_{net.layer[top[0]].name}_{top[1]}_split"


def _add_split(net: NetParameter, name: str, blob: str, count: int, weight: float) -> None:
    split = net.layer.add(name=name, type="Split", bottom=[blob])
    split.top.extend(f"{name}_{k}" for k in range(count))
    if weight:
        split.loss_weight.extend([weight] + [0.0] * (count - 1))


def _check_makers(net: NetParameter, split: NetParameter) -> None:
    """Every top of the net with splits is made once, or again by a layer that works in place."""
    meant_in_place = {(layer.name, blob) for layer in net.layer for blob in _in_place(layer)}
    makers: dict[str, str] = {}
    for layer in split.layer:
        for blob in layer.top:
            if blob in makers and blob not in _in_place(layer):
                raise _made_twice(layer, blob, makers[blob], (layer.name, blob) in meant_in_place)
            makers[blob] = layer.name


def _in_place(layer: LayerParameter) -> set[str]:
    """The tops that have the name of the bottom at the same index."""
    return {top for top, bottom in zip(layer.top, layer.bottom, strict=False) if top == bottom}


def _made_twice(layer: LayerParameter, blob: str, maker: str, meant_in_place: bool) -> NetError:
    where = f"layer {layer.name}"
    if meant_in_place:
        found = f"it works in place on '{blob}', which another layer reads before"
        return NetError(where, found, "one reader of what is overwritten", "give this layer a top of its own")
    return NetError(where, f"top '{blob}' is made by layer {maker} too", "one maker a blob", "rename it")
