"""What to say about a prototxt field that BVLC Caffe does not have: the fork it comes from, or today's name.

A fork is named for a field where it is the best known one that has it; others may have it too.
"""

from __future__ import annotations

# first bytes -> what begins with them
BINARY_FORMATS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip archive (.npz, .pt)",
    b"\x80\x02": "a Python pickle",
    b"\x93NUMPY": "a numpy array",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
}

_SSD = "a layer of the SSD fork (weiliu89/caffe), which BVLC Caffe lacks"
_PSPNET = (
    "of the PSPNet fork, whose BN keeps mean and variance in 4 blobs: another layer than DeconvNet's and"
    " SegNet's BN, not run here; write BatchNorm and Scale"
)
_RCNN = "a layer of the Fast R-CNN fork (rbgirshick/caffe-fast-rcnn), which BVLC Caffe lacks"
_HOLE = "the DeepLab fork's name: write dilation"
_SOLVER = "this is a field of a solver: give the net's prototxt instead"
_V1 = "a field of the older 'layers' blocks: in a 'layer' block write param { lr_mult: .. decay_mult: .. }"
_V0 = "a field of the V0 form: wrap it as layers { layer { .. } }, or use today's names"

# (message, field) -> what to do
FIELD_HINTS = {
    ("LayerParameter", "permute_param"): _SSD,
    ("LayerParameter", "norm_param"): _SSD,
    ("LayerParameter", "prior_box_param"): _SSD,
    ("LayerParameter", "detection_output_param"): _SSD,
    ("LayerParameter", "detection_evaluate_param"): _SSD,
    ("LayerParameter", "multibox_loss_param"): _SSD,
    ("LayerParameter", "annotated_data_param"): _SSD,
    **{
        ("BNParameter", name): _PSPNET
        for name in (
            "slope_filler",
            "bias_filler",
            "var_eps",
            "moving_average",
            "decay",
            "axis",
            "momentum",
            "eps",
            "frozen",
            "engine",
            "std_filler",
        )
    },
    ("LayerParameter", "roi_pooling_param"): _RCNN,
    ("LayerParameter", "smooth_l1_loss_param"): _RCNN,
    ("ConvolutionParameter", "hole"): _HOLE,
    ("ConvolutionParameter", "hole_h"): _HOLE,
    ("ConvolutionParameter", "hole_w"): _HOLE,
    ("PoolingParameter", "ceil_mode"): "a field of forks: for ceil_mode: false write round_mode: FLOOR",
    ("LayerParameter", "blobs_lr"): _V1,
    ("LayerParameter", "weight_decay"): _V1,
    ("LayerParameter", "blob_share_mode"): _V1,
    ("LayerParameter", "kernelsize"): _V0,
    ("LayerParameter", "biasterm"): _V0,
    ("V1LayerParameter", "kernelsize"): _V0,
    ("V1LayerParameter", "biasterm"): _V0,
    ("NetParameter", "net"): _SOLVER,
    ("NetParameter", "train_net"): _SOLVER,
    ("NetParameter", "test_net"): _SOLVER,
    ("NetParameter", "test_iter"): _SOLVER,
    ("NetParameter", "base_lr"): _SOLVER,
    ("SolverParameter", "layer"): "this is a field of a net: give the solver's prototxt instead",
    ("SolverParameter", "layers"): "this is a field of a net: give the solver's prototxt instead",
    ("SolverParameter", "name"): "this is a field of a net: give the solver's prototxt instead",
}
