"""Interp against its definition: pixel i of m lies at i (n - 1) / (m - 1) of n, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from layer_nets import draw, net_of, run

from caffe_weights.caffe_pb2 import NetParameter
from caffe_weights.prototxt import format_net, parse_net
from surgery.netspec import L, NetSpec
from surgery.shapes import infer_shapes


def matrix(n: int, m: int) -> np.ndarray:
    """(m, n): row i holds the weights of the n pixels in pixel i."""
    rows = np.zeros((m, n))
    for i in range(m):
        place = Fraction(i * (n - 1), m - 1) if m > 1 else Fraction(0)
        low = place.numerator // place.denominator
        rows[i, low] += float(1 - (place - low))
        if place != low:
            rows[i, low + 1] += float(place - low)
    return rows


def by_definition(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    down, across = (matrix(n, m) for n, m in zip(x.shape[2:], size, strict=True))
    return np.asarray(np.einsum("ih,nchw,jw->ncij", down, x, across))


SIZES = [((5, 7), (9, 13)), ((4, 6), (7, 11)), ((5, 4), (3, 9)), ((3, 3), (8, 1)), ((1, 6), (4, 6))]


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_values_at_odd_and_even_sizes(old: tuple[int, int], new: tuple[int, int]) -> None:
    x = draw(2, 3, *old)
    (y,) = run(net_of("Interp", [(2, 3, *old)], f"interp_param {{ height: {new[0]} width: {new[1]} }}"), x)
    np.testing.assert_allclose(y.numpy(), by_definition(x.numpy(), new), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_two_sizes_of_auto_deeplab(n: int) -> None:
    """Up: 2 (n - 1) + 1, down: int((n - 1) / 2 + 1); B.5 of the system's facts."""
    sizes = {"zoom": 2 * (n - 1) + 1, "shrink": int((n - 1) / 2 + 1)}
    x = draw(1, 1, n, n + 1)
    for way, size in sizes.items():
        (y,) = run(net_of("Interp", [(1, 1, n, n + 1)], f"interp_param {{ {way}_factor: 2 }}"), x)
        assert y.shape[2] == size and y.shape[3] == {"zoom": 2 * n + 1, "shrink": n // 2 + 1}[way]
        want = by_definition(x.numpy(), (y.shape[2], y.shape[3]))
        np.testing.assert_allclose(y.numpy(), want, rtol=1e-12, atol=1e-12)


def test_an_odd_size_halved_keeps_every_second_pixel() -> None:
    x = draw(1, 2, 9, 5)
    (y,) = run(net_of("Interp", [(1, 2, 9, 5)], "interp_param { shrink_factor: 2 }"), x)
    torch.testing.assert_close(y, x[:, :, ::2, ::2])


def test_a_second_bottom_gives_the_size_and_gets_no_gradient() -> None:
    x, like = draw(1, 2, 4, 4).requires_grad_(), draw(1, 5, 7, 3).requires_grad_()
    (y,) = run(net_of("Interp", [(1, 2, 4, 4), (1, 5, 7, 3)]), x, like)
    assert y.shape == (1, 2, 7, 3)
    grads = torch.autograd.grad(y.sum(), [x, like], allow_unused=True)
    assert grads[0] is not None and grads[1] is None


def test_pixels_are_cut_off_before_resizing() -> None:
    x = draw(1, 1, 6, 7)
    more = "interp_param { shrink_factor: 2 zoom_factor: 3 pad_beg: -1 pad_end: -2 }"
    (y,) = run(net_of("Interp", [(1, 1, 6, 7)], more), x)
    inner = x[:, :, 1:4, 1:5].numpy()  # 3 x 4 pixels, halved to 2 x 2, times 3: 4 x 4
    np.testing.assert_allclose(y.numpy(), by_definition(inner, (4, 4)), rtol=1e-12, atol=1e-12)


def test_opencv_agrees_where_its_corners_are_aligned() -> None:
    """cv2.warpAffine with the map of aligned corners, in its fixed-point steps of 1/32: 5 to 9 is exact."""
    x = draw(1, 1, 5, 5).float()
    (y,) = run(net_of("Interp", [(1, 1, 5, 5)], "interp_param { zoom_factor: 2 }").float(), x)
    half = np.array([[0.5, 0, 0], [0, 0.5, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    want = cv2.warpAffine(x[0, 0].numpy(), half, (9, 9), flags=flags)
    np.testing.assert_allclose(y[0, 0].numpy(), want, rtol=1e-6, atol=1e-6)


def test_the_layer_is_written_in_python_and_in_text() -> None:
    n = NetSpec()
    n.data = L.Input(shape=[1, 3, 33, 65])
    n.half = L.Interp(n.data, shrink_factor=2)
    n.back = L.Interp(n.half, n.data)
    net = parse_net(format_net(n.to_proto()))
    blobs = infer_shapes(net).blobs
    assert blobs["half"] == (1, 3, 17, 33) and blobs["back"] == (1, 3, 33, 65)
    assert NetParameter.FromString(net.SerializeToString()) == net
