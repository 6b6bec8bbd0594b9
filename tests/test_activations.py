"""`fcn show-activations`: which layers, which channels, and that the figure holds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import refused, run_in
from PIL import Image

from caffe_weights.errors import NetError
from caffe_weights.export import write_weights
from caffe_weights.prototxt import format_net
from reproduce.deconvnet.activations import Maps, draw, mosaic, rows_of, shown_blobs, strongest
from reproduce.net import Net
from reproduce.nets import Form, make_net


def test_rows_begin_with_each_unpooling() -> None:
    kinds = shown_blobs(make_net("deconvnet"))
    panels = [Maps(name, kind, (0,), np.zeros((1, 2, 2))) for name, kind in kinds.items()]
    names = [[panel.blob for panel in row] for row in rows_of(panels)]
    assert names[0] == ["fc6-deconv"]
    assert names[1] == ["unpool5", "deconv5_1", "deconv5_2", "deconv5_3"]
    assert names[5] == ["unpool1", "deconv1_1", "deconv1_2"]
    assert list(shown_blobs(make_net("voc-fcn8s"))) == ["upscore2", "upscore_pool4", "upscore8"]
    with pytest.raises(NetError, match="no deconvolution"):
        shown_blobs(make_net("vgg16"))


def test_the_strongest_channels_by_their_mean() -> None:
    values = np.zeros((4, 2, 3), np.float32)
    values[1], values[2, 0, 0], values[3] = 2, 9, 1
    found = strongest("x", "Unpooling", values, 3)
    assert found.channels == (1, 2, 3)
    np.testing.assert_array_equal(found.maps, values[[1, 2, 3]])


def test_a_mosaic_by_hand() -> None:
    maps = np.arange(3.0)[:, None, None] * np.ones((1, 2))
    nan = np.nan
    np.testing.assert_array_equal(
        mosaic(maps), [[0, 0, nan, 1, 1], [nan] * 5, [2, 2, nan, nan, nan]])  # fmt: skip
    assert mosaic(np.ones((1, 4, 5))).shape == (4, 5)


def test_the_command_draws_what_the_net_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(make_net("deconvnet", form=Form(32, 4), size=(32, 32)), phase="TEST", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for blobs in net.params.values():
            blobs[0].copy_(torch.rand(blobs[0].shape, generator=generator) - 0.3)
    write_weights(net.weights(), tmp_path / "net.caffemodel")
    (tmp_path / "net.prototxt").write_text(format_net(net.definition))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    fcn = run_in(tmp_path, monkeypatch)
    shown = ("show-activations", "x.png", "--weights", "net.caffemodel", "--net", "net.prototxt")
    done = fcn(*shown, "--out", "a.png", "--box", "4,9,35,40", "--channels", 2, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["height"], report["width"]) == (32, 32)
    crop = pixels[9:41, 4:36, ::-1].astype(np.float64) - (104.00699, 116.66877, 122.67892)
    x = np.ascontiguousarray(crop.transpose(2, 0, 1)[np.newaxis]).astype(np.float32)
    with torch.no_grad():
        want = net(data=x, keep=["unpool3", "deconv1_2"])
    layers = {row["blob"]: row for row in report["layers"]}
    for name in ("unpool3", "deconv1_2"):
        means = want[name][0].double().mean((1, 2))
        best = [item["mean"] for item in layers[name]["channels"]]
        np.testing.assert_allclose(best, means.sort(descending=True).values[:2], rtol=1e-4)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    refused(fcn(*shown, "--out", "a.png"), "exists")
    refused(fcn(*shown, "--out", "b.png", "--box", "5,5,1,1"), "X1,Y1,X2,Y2")
    refused(fcn(*shown, "--out", "b.png", "--box", "5,5,a"), "X1,Y1,X2,Y2")
    refused(fcn(*shown[:2], "--weights", "none.npz", "--out", "no/b.png"), "no/b.png", "folder")  # at once
    assert not (tmp_path / "b.png").exists()


def test_an_fcn_is_drawn_in_one_row(tmp_path: Path) -> None:
    panels = [Maps(name, "Deconvolution", (0,), np.random.default_rng(0).random((1, 8, 8))) for name in "abc"]
    picture = np.zeros((8, 8, 3), np.uint8)
    draw(picture, np.zeros((8, 8), np.uint8), panels, tmp_path / "a.png")
    draw(picture, None, panels, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as first, Image.open(tmp_path / "b.png") as second:
        assert first.width > second.width > second.height
        assert (np.asarray(first.convert("L"))[:3] == 255).all()  # titles of two lines are not cut
