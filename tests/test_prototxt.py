"""Reading is held against the library's own parser and literal messages, printing against literal text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_weights.caffe_pb2 import NetParameter, NetState, SolverParameter
from caffe_weights.errors import FileError, PrototxtError
from caffe_weights.prototxt import (
    format_net,
    format_solver,
    parse_net,
    parse_solver,
    read_net,
    read_solver,
    write_net,
)

# Each was given to a running Caffe, which accepts it with this meaning.
ACCEPTED = {
    'layer: { name: "x" }': 'layer { name: "x" }',
    'layer < name: "x" >': 'layer { name: "x" }',
    "name: 'x'; force_backward: true, layer { name: 'q' };": 'name:"x" force_backward:true layer{name:"q"}',
    "layer { loss_weight: 1.f loss_weight: .5f loss_weight: 2F }": "layer { loss_weight: [1, 0.5, 2] }",
    "layer { loss_weight: inf loss_weight: 1e60 }": "layer { loss_weight: [inf, inf] }",
    "input_dim: 010 input_dim: 0x10": "input_dim: 8 input_dim: 16",
    'name: "a" "b"\n\'c\'': 'name: "abc"',
    "layer { pooling_param { pool: 1 } }": "layer { pooling_param { pool: AVE } }",
    "force_backward: 1": "force_backward: true",
    "force_backward: True": "force_backward: true",
    'layer [ { name: "a" }, { name: "b" } ]': 'layer { name: "a" } layer { name: "b" }',
    "layer { loss_weight: [] }": "layer { }",
    'name:"x"force_backward:true # comment\r\n': 'name: "x" force_backward: true',
    r'name: "\303\251\x41\n"': 'name: "éA\\n"',
}

# Each is refused by a running Caffe too, but those marked.
REFUSED = {
    'name: "x"\nlayer {\n  convolution_param { foo: 3 }\n}': "3:23: no field 'foo' in Conv.*; wanted one of",
    "layer { convolution_param { kernel_siz: 3 } }": "1:29: no field .* wanted one of kernel_size, kernel_",
    "layer { kernel_size: 3 }": "put it inside one of convolution_param, pooling_param",
    "layer { permute_param { order: 0 } }": "1:9: no field 'permute_param' .* the SSD fork",
    "layer { convolution_param { hole: 2 } }": "write dilation",
    "layer { pooling_param { ceil_mode: false } }": "write round_mode: FLOOR",
    "layer { blobs_lr: 1 }": "in a 'layer' block write param",
    "base_lr: 0.1": "1:1: .* this is a field of a solver",
    "Name: 'x'": "no field 'Name' in NetParameter; wanted name$",
    "hello world": "1:1: no field 'hello' in NetParameter",
    "1: 2": "1:1: no field '1'",
    "layer { pooling_param { pool: MAXX } }": "1:31: no value MAXX in PoolMethod; wanted one of MAX, AVE",
    "layer { pooling_param { pool: 7 } }": "no value 7 in PoolMethod",
    "layers { type: CONVOLUTON }": "no value CONVOLUTON in LayerType; wanted one of CONVOLUTION",
    "layers { type: UNPOOL }": "no value UNPOOL in LayerType; wanted one of UNPOOLING",
    "layer { bn_param { slope_filler { } } }": "of the PSPNet fork, whose BN keeps mean and var",
    "state { phase: test }": "no value test in Phase; wanted one of TRAIN, TEST",
    "layer { convolution_param { pad: 1.5 } }": "1:34: found 1.5; wanted an integer for 'pad'",
    'input_dim: "1"': "found \"1\"; wanted an integer for 'input_dim'",
    "input_dim: 1e3": "found 1e3; wanted an integer",
    "layer { convolution_param { pad: -1 } }": "found -1; wanted a number that fits the field",
    "input_dim: 5000000000": "found 5000000000; wanted a number that fits",
    "layer { loss_weight: 010 }": "wanted a decimal number for 'loss_weight'",
    "layer { loss_weight: [1,] }": r"found \]; wanted a decimal number",
    "layer { name: conv }": "1:15: found conv; wanted text in quotes for 'name'",
    "name:\nlayer {}": "2:1: found layer; wanted text in quotes",
    "force_backward: yes": "found yes; wanted 'true' or 'false' for 'force_backward'",
    'layer { name: "x"\n': "1:7: this '{' is never closed",
    'layer { name: "}" # }\nlayer { name: "y" }\n': "2:1: no field 'layer' .* the '{' at 1:7 is never closed",
    'layer { name: "x" } }': "1:21: found }; .* one '}' too many",
    'layer { name: "x" >': "found >; wanted the name of a field",
    'name: "a" name: "b"': "1:17: 'name' is given a second time; wanted one in a NetParameter",
    "layer { pooling_param { } pooling_param { } }": "'pooling_param' is given a second time",
    'name "x"': "1:6: found \"x\"; wanted ':'",
    'name = "x"': "found =; wanted ':'",
    "layer: 3": "1:8: found 3; wanted '{'",
    'name: "abc': '1:7: found "abc; wanted a quote at the end',
    'name: "a\nb"': "1:7: .* wanted a quote at the end of the text, on the same line",
    r'name: "\777"': "wanted valid escapes",
    'name: "a\\\\b"\nlayer { name: "C:\\data" } # "\\z"': r"2:18: found \\d; .* write \\\\",
    r"name: 'a\?'": r"1:9: found \\\?; wanted valid escapes",  # Caffe reads a question mark
    r'name: "\xff"': "not UTF-8",  # Caffe takes any bytes
    "[foo.bar]: 1": "a name in brackets",
    "% comment": "found %; wanted the name of a field",
    "layer { clip_param { min: 1 } }": r"<text>: layer\[0\].clip_param.max is not given",
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_caffe_accepts(text: str) -> None:
    assert parse_net(text) == text_format.Parse(ACCEPTED[text], NetParameter())


@pytest.mark.filterwarnings("ignore:invalid octal escape")
@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_and_where(text: str) -> None:
    with pytest.raises(PrototxtError, match=REFUSED[text]) as caught:
        parse_net(text)
    assert str(caught.value).startswith("<text>:") and "\n" not in str(caught.value)


@given(st.text() | st.text("layers{}<>[]:\"'#\\ \n-+.019abc"))
def test_any_text_is_a_net_or_an_error_of_one_line(text: str) -> None:
    message = ""
    try:
        parse_net(text)
    except PrototxtError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


def test_a_solver_tells_a_net_from_a_solver() -> None:
    assert parse_solver('type: "Adam" stepvalue: 3 stepvalue: 5').stepvalue == [3, 5]
    with pytest.raises(PrototxtError, match="s:1:1: no field 'layer' in SolverParameter.*field of a net"):
        parse_solver("layer { }", "s")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file holds no field; wanted the text of a NetParameter"),
        (b"# only a comment\n", "the file holds no field"),
        (b"\x89HDF\r\n\x1a\n\0\0", "this is an HDF5 file, not text"),
        (b"\x1f\x8b\x08\x00", "this is a gzip file"),
        (NetParameter(name="n", state=NetState(level=3)).SerializeToString(), "binary data, not text"),
        (b"\x80\x02\x8a\nl\xfc", "a Python pickle"),
        ((0x280).to_bytes(8, "little") + b'{"a":', "a safetensors file"),  # begins like a pickle
        (b'name: "\xff"', "not UTF-8|valid escapes"),
        (b'\n\n  nmae: "x"', "net.prototxt:3:3: no field 'nmae' in NetParameter; wanted name$"),
    ],
)
def test_files_that_are_no_prototxt(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "net.prototxt").write_bytes(content)
    with pytest.raises(PrototxtError, match=words):
        read_net(tmp_path / "net.prototxt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_solver(tmp_path / "solver.prototxt")


@pytest.mark.parametrize("content", [b'\xef\xbb\xbfname: "x"', b'# \xe9t\xe9\r\nname: "x"\r\n'])
def test_byte_order_mark_and_comments_in_latin_1(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.prototxt").write_bytes(content)
    assert read_net(tmp_path / "net.prototxt") == NetParameter(name="x")


def test_size_is_bounded() -> None:
    with pytest.raises(PrototxtError, match="wanted at most 4 MiB and 100000 blocks"):
        parse_net("#" * (4 << 20) + " ")
    with pytest.raises(PrototxtError, match="100000 blocks"):
        parse_net("layer{}" * 100_001)


def test_print_of_every_kind_of_value() -> None:
    net = parse_net(
        'layer { name: "dej\\303\\240\\"\\n" loss_weight: [0.1, 1, 1e6, 1e-5, 104.00699, 16777216, -inf, nan]'
        " param { lr_mult: 1 } pooling_param { pool: AVE } propagate_down: true phase: TRAIN"
        " blobs { double_data: 0.1 shape { dim: -9223372036854775808 } } }"
    )
    assert format_net(net) == (
        'layer {\n  name: "dej\\303\\240\\"\\n"\n'
        "  loss_weight: 0.1\n  loss_weight: 1\n  loss_weight: 1e+06\n  loss_weight: 1e-05\n"
        "  loss_weight: 104.00699\n  loss_weight: 16777216\n  loss_weight: -inf\n  loss_weight: nan\n"
        "  param {\n    lr_mult: 1\n  }\n"
        "  blobs {\n    shape {\n      dim: -9223372036854775808\n    }\n    double_data: 0.1\n  }\n"
        "  phase: TRAIN\n  propagate_down: true\n  pooling_param {\n    pool: AVE\n  }\n}\n"
    )


def _values(field: FieldDescriptor) -> st.SearchStrategy[object]:
    if field.message_type:
        return _fields(field.message_type)
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return {
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
        FieldDescriptor.CPPTYPE_STRING: st.text(st.characters(codec="utf-8")),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    }[field.cpp_type]


def _fields(descriptor: Any) -> st.SearchStrategy[dict[str, object]]:
    """Keyword arguments of a message: up to 3 of its fields, and those it requires."""
    one = {
        f.name: st.lists(v, max_size=3) if f.is_repeated else v for f in descriptor.fields for v in [_lazy(f)]
    }
    always = [f.name for f in descriptor.fields if f.is_required]
    names = st.lists(st.sampled_from(sorted(one)), max_size=3, unique=True).map(lambda some: {*some, *always})
    return names.flatmap(lambda some: st.fixed_dictionaries({name: one[name] for name in sorted(some)}))


def _lazy(field: FieldDescriptor) -> st.SearchStrategy[object]:
    return st.deferred(lambda: _values(field))


@settings(max_examples=100, deadline=None)
@given(_fields(NetParameter.DESCRIPTOR))
def test_every_net_survives_text(fields: dict[str, object]) -> None:
    net = NetParameter(**fields)  # type: ignore[arg-type]
    assert parse_net(format_net(net)) == net
    assert text_format.Parse(format_net(net), NetParameter()) == net


@settings(max_examples=50, deadline=None)
@given(_fields(SolverParameter.DESCRIPTOR))
def test_every_solver_survives_text(fields: dict[str, object]) -> None:
    solver = SolverParameter(**fields)  # type: ignore[arg-type]
    assert parse_solver(format_solver(solver)) == solver


def test_write(tmp_path: Path) -> None:
    net = NetParameter(name="é", force_backward=True)
    write_net(net, tmp_path / "net.prototxt")
    assert (tmp_path / "net.prototxt").read_bytes() == b'name: "\\303\\251"\nforce_backward: true\n'
    with pytest.raises(FileError, match="pass --force"):
        write_net(net, tmp_path / "net.prototxt")
    write_net(NetParameter(name="b"), tmp_path / "net.prototxt", force=True)
    assert read_net(tmp_path / "net.prototxt").name == "b"
