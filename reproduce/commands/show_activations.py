"""`fcn show-activations`: the maps of unpooling and deconvolution layers as one figure."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from caffe_weights.errors import InputError
from caffe_weights.files import check_output
from reproduce.commands.common import (
    device_option,
    fcn_command,
    force_option,
    json_option,
    print_json,
    progress,
    weights_option,
)
from reproduce.images import VOC_MEAN_BGR, read_image


class Box(click.ParamType):
    """X1,Y1,X2,Y2 in pixels from 0, both ends belonging to it."""

    name = "X1,Y1,X2,Y2"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> np.ndarray:
        """Four whole numbers in order."""
        try:
            box = np.array([int(part) for part in value.split(",")])
        except ValueError:
            box = np.zeros(0, int)
        if box.size != 4 or (box[2:] < box[:2]).any() or (np.abs(box) > 1 << 16).any():
            self.fail(f"{value!r}; wanted X1,Y1,X2,Y2, as 10,20,99,79", param, ctx)
        return box


@fcn_command("show-activations")
@click.argument("image_path", metavar="IMAGE")
@weights_option
@click.option("--net", "net_path", default=None, metavar="PROTOTXT",
              help="The net. [default: recognised from the weights, for nets of fcn net --list]")  # fmt: skip
@click.option("--out", required=True, metavar="FILE.png", help="The figure.")
@click.option("--box", type=Box(), default=None, help="Show what the net makes of this part of the picture.")
@click.option("--channels", type=click.IntRange(1, 64), default=4, show_default=True,
              help="How many of the strongest channels of each layer.")  # fmt: skip
@device_option
@force_option
@json_option
def command(
    image_path: str, weights_path: str, net_path: str | None, out: str, box: np.ndarray | None, channels: int,
    device: str, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Draw the activation maps of a net's unpooling and deconvolution layers for an IMAGE.

    From coarse to fine, a row for each unpooling. The net sees BGR minus VOC's mean; a net of crops, as
    DeconvNet, sees the picture (or --box of it) resized to its input. Each panel has its own scale: black is
    its least value, its title tells the greatest.

    \b
    Keys of --json:
      image, weights, net, figure, height, width (of what the net saw)
      layers   blob, kind (layer type), height, width,
               channels: channel, mean, max, nonzero (fraction of the map)
    """
    from reproduce.deconvnet.activations import draw, shown_blobs, strongest, summary
    from reproduce.inference import forward

    check_output(out, force)
    picture, net_name = _net(net_path, weights_path, device)
    kinds = shown_blobs(picture.net.definition)
    seen = _seen(read_image(image_path), box, picture.size)
    blob = seen[:, :, ::-1].transpose(2, 0, 1)[np.newaxis] - np.reshape(VOC_MEAN_BGR, (1, 3, 1, 1))
    with progress("running the net"):
        found = forward(picture.net, {picture.input: blob.astype(np.float32)}, [*kinds, picture.output])
        panels = [strongest(name, kind, found[name][0], channels) for name, kind in kinds.items()]
        scores = found[picture.output][0]
        labels = scores.argmax(0).astype(np.uint8) if scores.ndim == 3 else None
        draw(np.clip(np.rint(seen), 0, 255).astype(np.uint8), labels, panels, out, force)
    report = {"image": image_path, "weights": weights_path, "net": net_name, "figure": out,
              "height": seen.shape[0], "width": seen.shape[1], "layers": summary(panels)}  # fmt: skip
    if as_json:
        print_json(report)
    else:
        for row in report["layers"]:
            shown = ", ".join(str(item["channel"]) for item in row["channels"])
            click.echo(f"{row['blob']:<12} {row['height']}x{row['width']}  channels {shown}")
        click.echo(f"wrote {out}")


def _net(net_path: str | None, weights_path: str, device: str) -> tuple[Any, str]:
    from caffe_weights.export import read_weights
    from reproduce.inference import picture_net
    from reproduce.recognition import published_net

    if net_path is not None:
        picture, name = picture_net(net_path, weights_path, device, frame=False), net_path
    else:
        known = published_net(read_weights(weights_path))
        picture = picture_net(known.definition, weights_path, device, preferred=known.score, frame=False)
        name = str(known)
    if picture.channels != 3:
        raise InputError(name, f"{picture.channels} input channels", "3, of a picture")
    return picture, name


def _seen(image: np.ndarray, box: np.ndarray | None, size: tuple[int, int] | None) -> np.ndarray:
    """What the net sees of a picture, float64 H x W x 3: the box, in the size of a net of crops."""
    import torch

    from reproduce.deconvnet.inference import cut
    from reproduce.deconvnet.resize import imresize

    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).double()
    if box is not None:
        planes = cut(planes, box)
    if size is not None and size[0] == size[1]:
        planes = imresize(planes, size)
    return planes.numpy().transpose(1, 2, 0)
