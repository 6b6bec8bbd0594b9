"""HDF5Data, MemoryData and HDF5Output, on small files made here."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from source_nets import READER, batches, net_of

from caffe_weights.errors import FileError, FormatError, NetError
from caffe_weights.prototxt import parse_net
from reproduce.layers.sources import MemoryData
from reproduce.net import Net

# ---- HDF5Data ----


@pytest.fixture
def hdf5_list(tmp_path: Path) -> Path:
    """Two files of 3 and 2 rows; row r holds data [r, r], label r."""
    for name, rows in (("a.h5", range(3)), ("b.h5", range(3, 5))):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"] = np.array([[r, r] for r in rows], np.float32)
            file["label"] = np.array(list(rows), np.int64)
    path = tmp_path / "list.txt"
    path.write_text(f"{tmp_path / 'a.h5'}\n{tmp_path / 'b.h5'}\n")
    return path


def hdf5_net(source: Path, more: str = "") -> Net:
    return net_of("HDF5Data", f'hdf5_data_param {{ source: "{source}" batch_size: 2 {more} }}')


def test_rows_cross_from_file_to_file_and_begin_again(hdf5_list: Path) -> None:
    net = hdf5_net(hdf5_list)
    assert net.shapes().blobs == {"data": (2, 2), "label": (2,)} and net.fed == []
    assert batches(net, 4, "label") == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert net()["data"].tolist() == [[3, 3], [4, 4]]


def test_a_shuffled_pass_sees_every_row_once_and_a_seed_repeats_it(hdf5_list: Path) -> None:
    def rows(seed: int) -> list[float]:
        torch.manual_seed(seed)
        net = hdf5_net(hdf5_list, "shuffle: true")
        return [value for _ in range(5) for value in net()["label"].tolist()]

    for seed in range(4):
        assert sorted(rows(seed)[:5]) == sorted(rows(seed)[5:]) == [0, 1, 2, 3, 4]
    assert rows(1) == rows(1) and len({tuple(rows(seed)) for seed in range(4)}) > 1


def test_a_net_fed_by_name_reads_nothing(hdf5_list: Path) -> None:
    net = hdf5_net(hdf5_list)
    assert net(data=np.full((2, 2), 9), label=[7, 8])["label"].tolist() == [7, 8]
    assert batches(net, 1, "label") == [[0, 1]]


def test_a_copy_goes_on_where_the_net_was(hdf5_list: Path) -> None:
    net = hdf5_net(hdf5_list)
    net()
    twin, other = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    assert batches(net, 1, "label") == batches(twin, 1, "label") == batches(other, 1, "label") == [[2, 3]]


def test_a_missing_source_leaves_an_input(tmp_path: Path) -> None:
    param = f'hdf5_data_param {{ source: "{tmp_path}/no" batch_size: 2 }}'
    text = f'layer {{ name: "d" type: "HDF5Data" top: "x" {param} }}' + READER
    with pytest.raises(NetError, match="no shape for blob x"):
        Net(parse_net(text))
    net = Net(parse_net(text), input_shapes={"x": (1, 3)})
    assert net.fed == ["x"] and net(x=[[1.0, 2, 3]])["p"].tolist() == [[1, 2, 3]]
    with pytest.raises(
        NetError, match=r"input x: not given, and layer d \(HDF5Data\) has nothing to read: .*no does not"
    ):
        net()


def damaged_hdf5(path: Path, how: str) -> None:
    with h5py.File(path, "w") as file:
        if how != "lost":
            file["data"] = np.zeros((3, 2), np.complex64 if how == "complex" else np.float32)
        if how == "link":
            file["label"] = h5py.ExternalLink("b.h5", "label")
        elif how == "hollow":
            file.create_dataset("label", (3, 400_000_000), np.float32)
        else:
            file["label"] = np.zeros(4 if how == "rows" else 3, np.float32)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lost", "dataset data: the file has none of this name; wanted label"),
        ("complex", "dataset data: values of complex64; wanted numbers"),
        ("link", "dataset label: a group, or a link to elsewhere"),
        ("hollow", "dataset label: 3x400000000 values in 0 bytes; wanted values that are stored"),
        ("rows", "datasets of 3, 4 rows; wanted equal numbers"),
    ],
)
def test_a_bad_hdf5_file_is_refused(hdf5_list: Path, how: str, message: str) -> None:
    damaged_hdf5(hdf5_list.parent / "a.h5", how)
    with pytest.raises(FormatError, match=message):
        hdf5_net(hdf5_list)


def test_bad_lists_and_settings_of_hdf5_data(hdf5_list: Path) -> None:
    (hdf5_list.parent / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\nshort")
    net = hdf5_net(hdf5_list)
    net()
    with pytest.raises(FormatError, match="b.h5: a broken HDF5 file"):
        net()
    with h5py.File(hdf5_list.parent / "b.h5", "w") as file:
        file["data"], file["label"] = np.zeros((1, 3)), np.zeros(1)
    with pytest.raises(FormatError, match="b.h5: dataset data: items of 3; wanted 2, as in the files before"):
        batches(hdf5_net(hdf5_list), 2)
    hdf5_list.write_text("gone.h5\n")
    with pytest.raises(FileError, match="gone.h5: no such file"):
        hdf5_net(hdf5_list)
    hdf5_list.write_text("\n")
    with pytest.raises(FormatError, match="no file in this list"):
        hdf5_net(hdf5_list)
    with pytest.raises(NetError, match=r"layer d \(HDF5Data\): batch_size 0; wanted at least 1"):
        net_of("HDF5Data", f'hdf5_data_param {{ source: "{hdf5_list}" }}')
    with pytest.raises(NetError, match="transform_param; wanted none"):
        net_of("HDF5Data", f'transform_param {{ }} hdf5_data_param {{ source: "{hdf5_list}" batch_size: 1 }}')


# ---- MemoryData, HDF5Output, and all of it in a net ----


def test_memory_data_goes_round_what_it_was_given() -> None:
    param = "memory_data_param { batch_size: 2 channels: 1 height: 1 width: 2 }"
    net = net_of("MemoryData", param, 'top: "x" top: "label"', after=READER)
    with pytest.raises(NetError, match="nothing has been handed over with reset"):
        net()
    source = net.source("d")
    assert isinstance(source, MemoryData)
    data = np.arange(8.0).reshape(4, 1, 1, 2)
    source.reset(data, range(4))
    assert batches(net, 3, "label") == [[0, 1], [2, 3], [0, 1]]
    np.testing.assert_array_equal(net()["p"].numpy(), data[2:])
    refused = [
        (data[:3], range(3), "data of 3x1x1x2; wanted N x 1x1x2, N a multiple of 2"),
        (data, range(3), "labels of 3; wanted 4, one an item"),
    ]
    for wrong, labels, message in refused:
        with pytest.raises(NetError, match=message):
            source.reset(wrong, labels)
    with pytest.raises(NetError, match="layer x: it reads no data; wanted d"):
        net.source("x")


OUTPUT = (
    'layer { name: "o" type: "HDF5Output" bottom: "x" bottom: "y" hdf5_output_param { file_name: "%s" } }'
)
INPUTS = "".join(
    f'layer {{ name: "{n}" type: "Input" top: "{n}" input_param {{ shape {{ {s} }} }} }}'
    for n, s in (("x", "dim: 2 dim: 3"), ("y", "dim: 2"))
)


def test_hdf5_output_writes_every_pass_anew_in_each_net(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_text("something else")
    for _ in range(2):
        net = Net(parse_net(INPUTS + OUTPUT % path))
        assert net(x=np.ones((2, 3)), y=[1, 2]) == {}
        net(x=np.zeros((1, 3)), y=[3])
        with h5py.File(path) as file:
            assert sorted(file) == ["data", "label"] and file["data"].dtype == np.float32
            np.testing.assert_array_equal(file["data"][()], [[1, 1, 1], [1, 1, 1], [0, 0, 0]])
            assert file["label"][()].tolist() == [1, 2, 3]
    with pytest.raises(NetError, match="out.h5: data of 1x4; wanted rows of 3, as before"):
        net(x=np.zeros((1, 4)), y=[3])
    with pytest.raises(FileError, match=r"layer o \(HDF5Output\): .*out.h5: no such folder"):
        Net(parse_net(INPUTS + OUTPUT % (tmp_path / "no" / "out.h5")))


def test_what_hdf5_output_wrote_hdf5_data_reads_and_a_net_trains_on(hdf5_list: Path) -> None:
    after = """layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 5 } }
        layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l" }"""
    param = f'hdf5_data_param {{ source: "{hdf5_list}" batch_size: 5 }}'
    net = net_of("HDF5Data", param, phase="TRAIN", after=after)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = net.total_loss(net())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(5)) and losses[-1] < 0.7 * losses[0]
