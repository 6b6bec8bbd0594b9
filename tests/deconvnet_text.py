"""DeconvNet's released prototxts stated a second time: V1 text made from the table of its layers.

`TABLE` is written off the released files (HyeonwooNoh/DeconvNet at 87dd133), row by row: layer, kind, input
(with the mask for an unpooling), number of outputs or top size, kernel, padding, BN, ReLU.
"""

from __future__ import annotations

TABLE = """
conv1_1 CONVOLUTION data 64 3 1 bn1_1 relu1_1
conv1_2 CONVOLUTION conv1_1 64 3 1 bn1_2 relu1_2
pool1 POOLING conv1_2
conv2_1 CONVOLUTION pool1 128 3 1 bn2_1 relu2_1
conv2_2 CONVOLUTION conv2_1 128 3 1 bn2_2 relu2_2
pool2 POOLING conv2_2
conv3_1 CONVOLUTION pool2 256 3 1 bn3_1 relu3_1
conv3_2 CONVOLUTION conv3_1 256 3 1 bn3_2 relu3_2
conv3_3 CONVOLUTION conv3_2 256 3 1 bn3_3 relu3_3
pool3 POOLING conv3_3
conv4_1 CONVOLUTION pool3 512 3 1 bn4_1 relu4_1
conv4_2 CONVOLUTION conv4_1 512 3 1 bn4_2 relu4_2
conv4_3 CONVOLUTION conv4_2 512 3 1 bn4_3 relu4_3
pool4 POOLING conv4_3
conv5_1 CONVOLUTION pool4 512 3 1 bn5_1 relu5_1
conv5_2 CONVOLUTION conv5_1 512 3 1 bn5_2 relu5_2
conv5_3 CONVOLUTION conv5_2 512 3 1 bn5_3 relu5_3
pool5 POOLING conv5_3
fc6 CONVOLUTION pool5 4096 7 0 bnfc6 relu6
fc7 CONVOLUTION fc6 4096 1 0 bnfc7 relu7
fc6-deconv DECONVOLUTION fc7 512 7 0 fc6-deconv-bn fc6-deconv-relu
unpool5 UNPOOLING fc6-deconv+pool5_mask 14
deconv5_1 DECONVOLUTION unpool5 512 3 1 debn5_1 derelu5_1
deconv5_2 DECONVOLUTION deconv5_1 512 3 1 debn5_2 derelu5_2
deconv5_3 DECONVOLUTION deconv5_2 512 3 1 debn5_3 derelu5_3
unpool4 UNPOOLING deconv5_3+pool4_mask 28
deconv4_1 DECONVOLUTION unpool4 512 3 1 debn4_1 derelu4_1
deconv4_2 DECONVOLUTION deconv4_1 512 3 1 debn4_2 derelu4_2
deconv4_3 DECONVOLUTION deconv4_2 256 3 1 debn4_3 derelu4_3
unpool3 UNPOOLING deconv4_3+pool3_mask 56
deconv3_1 DECONVOLUTION unpool3 256 3 1 debn3_1 derelu3_1
deconv3_2 DECONVOLUTION deconv3_1 256 3 1 debn3_2 derelu3_2
deconv3_3 DECONVOLUTION deconv3_2 128 3 1 debn3_3 derelu3_3
unpool2 UNPOOLING deconv3_3+pool2_mask 112
deconv2_1 DECONVOLUTION unpool2 128 3 1 debn2_1 derelu2_1
deconv2_2 DECONVOLUTION deconv2_1 64 3 1 debn2_2 derelu2_2
unpool1 UNPOOLING deconv2_2+pool1_mask 224
deconv1_1 DECONVOLUTION unpool1 64 3 1 debn1_1 derelu1_1
deconv1_2 DECONVOLUTION deconv1_1 64 3 1 debn1_2 derelu1_2
"""
DATA = """layers {{ name: "data" type: {type} top: "data" top: "seg-label"
  image_data_param {{ root_folder: "./VOC2012" source: "./{source}.txt" label_type: PIXEL batch_size: {batch}
                      shuffle: true new_width: {side} new_height: {side} }}
  transform_param {{ mean_value: 104.008 mean_value: 116.669 mean_value: 122.675 crop_size: 224
                     mirror: true }}
  {include} }}"""
SCORE = """layers { name: "seg-score-voc" type: CONVOLUTION bottom: "deconv1_2" top: "seg-score"
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 21 kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 }
                      bias_filler { type: "constant" value: 0 } } }"""
ACCURACY = """layers {{ name: "seg-accuracy" type: ELTWISE_ACCURACY bottom: "seg-score" bottom: "seg-label"
  top: "seg-accuracy" eltwise_accuracy_param {{ ignore_label: 255 }} {} }}"""
LOSS = """layers { name: "seg-loss" type: SOFTMAX_LOSS bottom: "seg-score" bottom: "seg-label" top: "seg-loss"
  loss_param { ignore_label: 255 } }"""
TEST, TRAIN = "include: { phase: TEST }", "include: { phase: TRAIN }"


def text_of(split: str) -> str:
    """The V1 prototxt of a split."""
    name, head, tail = {
        "deploy": ("DeconvNet_inference_deploy",
                   'input: "data" input_dim: 1 input_dim: 3 input_dim: 224 input_dim: 224', ""),
        "stage1": ("stage_1_training",
                   data("IMAGE", "stage_1_train_imgset/train", 8, 250, TRAIN)
                   + data("IMAGE", "stage_1_train_imgset/val", 8, 250, TEST), ACCURACY.format(TEST) + LOSS),
        "stage2": ("stage_2_train",
                   data("WINDOW", "stage_2_train_imgset/train", 8, 250, TRAIN)
                   + data("WINDOW", "stage_2_train_imgset/val", 8, 224, TEST), ACCURACY.format(TEST) + LOSS),
        "statistics": ("DeconvNet_make_bn_layer_testable",
                       data("WINDOW", "stage_2_train_imgset/train", 28, 250), ""),
        "test": ("DeconvNet_inference_test.prototxt", data("WINDOW", "stage_2_train_imgset/val", 32, 224),
                 ACCURACY.format("")),
    }[split]  # fmt: skip
    rows = [layers_of(row.split(), split) for row in TABLE.strip().splitlines()]
    return "\n".join([f'name: "{name}"', head, *rows, SCORE, tail])


def data(kind: str, source: str, batch: int, side: int, include: str = "") -> str:
    return DATA.format(type=f"{kind}_SEG_DATA", source=source, batch=batch, side=side, include=include)


def layers_of(row: list[str], split: str) -> str:
    """One row of the table as V1 layers."""
    name, kind, bottom = row[:3]
    if kind == "POOLING":
        return (f'layers {{ name: "{name}" type: POOLING bottom: "{bottom}" top: "{name}" top: "{name}_mask" '
                "pooling_param { pool: MAX kernel_size: 2 stride: 2 } }")  # fmt: skip
    if kind == "UNPOOLING":
        value, mask = bottom.split("+")
        return (  # fmt: skip
            f'layers {{ name: "{name}" type: UNPOOLING bottom: "{value}" bottom: "{mask}" top: "{name}" '
            f"unpooling_param {{ unpool: MAX kernel_size: 2 stride: 2 unpool_size: {row[3]} }} }}"
        )
    outputs, kernel, pad, bn, relu = row[3:]
    filler = "" if kind == "CONVOLUTION" else (
        'weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 0 }')  # fmt: skip
    more = f'top: "{bn}-mean" top: "{bn}-var"' if split == "statistics" else ""
    mode = "bn_mode: INFERENCE" if split in ("deploy", "test") else ""
    return f"""layers {{ name: "{name}" type: {kind} bottom: "{bottom}" top: "{name}"
  blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  convolution_param {{ num_output: {outputs} {f"pad: {pad}" if pad != "0" else ""} kernel_size: {kernel}
                       {filler} }} }}
layers {{ name: "{bn}" type: BN bottom: "{name}" top: "{name}" {more} bn_param {{
  scale_filler {{ type: "constant" value: 1 }} shift_filler {{ type: "constant" value: 0.001 }} {mode} }} }}
layers {{ name: "{relu}" type: RELU bottom: "{name}" top: "{name}" }}"""
