"""The ways an FCN can be run that `inference.py` measures, each in a process of its own.

A way takes a folder with `deploy.prototxt`, `net.caffemodel` and `port.onnx` and gives a function from a
picture (1 x 3 x H x W, float32) to the scores (1 x classes x H x W). Python 3.6, numpy and pycaffe are enough
for the way `caffe`: whatever else is imported where it is needed.
"""

import json
import os
import sys
import time
from typing import Any, Callable  # noqa: UP035 - Python 3.6

os.environ.setdefault("GLOG_minloglevel", "2")  # Caffe: errors and failed checks only

import numpy as np

Job = dict
Run = Callable[[np.ndarray], np.ndarray]


def ours(folder: str, job: Job, frame: Any = None) -> Run:
    """Our runtime, as `Net` runs by default or without the shortcut over the border."""
    import torch

    from reproduce.net import Net

    torch.set_num_threads(job["threads"])
    net = Net.from_prototxt(
        os.path.join(folder, "deploy.prototxt"), os.path.join(folder, "net.caffemodel"), frame=frame
    )

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(data=x)["score"].numpy()

    return run


def whole(folder: str, job: Job) -> Run:
    """Ours without the shortcut."""
    return ours(folder, job, frame=False)


def port(folder: str, job: Job, channels_last: bool = False) -> Run:
    """The usual port in plain PyTorch."""
    import torch
    from usual_port import UsualFCN, load

    from caffe_weights.export import read_weights

    torch.set_num_threads(job["threads"])
    net = UsualFCN(job["stride"], job["classes"], job["narrow"]).eval()
    load(net, read_weights(os.path.join(folder, "net.caffemodel")))
    flat = torch.contiguous_format
    order = torch.channels_last if channels_last else flat
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous(memory_format=order if parameter.dim() == 4 else flat)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(x).contiguous(memory_format=order)).contiguous().numpy()

    return run


def port_channels_last(folder: str, job: Job) -> Run:
    """The usual port, channels last."""
    return port(folder, job, channels_last=True)


def opencv(folder: str, job: Job) -> Run:
    """OpenCV's dnn on the same prototxt and caffemodel."""
    import cv2

    cv2.setNumThreads(job["threads"])
    net = cv2.dnn.readNetFromCaffe(
        os.path.join(folder, "deploy.prototxt"), os.path.join(folder, "net.caffemodel")
    )

    def run(x: np.ndarray) -> np.ndarray:
        net.setInput(x, "data")
        return net.forward("score")

    return run


def onnxruntime(folder: str, job: Job) -> Run:
    """ONNX Runtime on the usual port."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = runtime.InferenceSession(
        os.path.join(folder, "port.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(["score"], {"data": x})[0]


def openvino(folder: str, job: Job) -> Run:
    """OpenVINO on the usual port, in float32."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": job["threads"], "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(os.path.join(folder, "port.onnx"), "CPU", settings)
    return lambda x: model({"data": x})["score"].copy()


def caffe(folder: str, job: Job) -> Run:
    """Caffe itself, by its Python interface."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(job["threads"])
    import caffe as real

    real.set_mode_cpu()
    net = real.Net(os.path.join(folder, "deploy.prototxt"), real.TEST)
    net.copy_from(os.path.join(folder, "net.caffemodel"))

    def run(x: np.ndarray) -> np.ndarray:
        if net.blobs["data"].data.shape != x.shape:
            net.blobs["data"].reshape(*x.shape)
        net.blobs["data"].data[...] = x
        return net.forward()["score"].copy()

    return run


WAYS = {
    "ours": ours,
    "whole": whole,
    "port": port,
    "port channels-last": port_channels_last,
    "opencv": opencv,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "caffe": caffe,
}


def picture(size: Any, seed: int = 1) -> np.ndarray:
    """A random picture with the mean off."""
    return np.random.RandomState(seed).uniform(-120, 130, (1, 3, *size)).astype(np.float32)


def serve(job: Job) -> dict:
    """Run one way as `job` says; what came out, ready for JSON. Scores go to files."""
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[job["clock"]]
    start = clock()
    run = WAYS[job["way"]](job["folder"], job)
    answer: Any = {"load_s": clock() - start, "sizes": {}, "loaded_bytes": memory_bytes("VmRSS")}

    def timed(x: np.ndarray) -> Any:
        begun = clock()
        scores = run(x)
        return clock() - begun, scores

    for size in job["sizes"]:
        x = picture(size)
        cold, scores = timed(x)
        warm = [timed(x)[0] for _ in range(job["repeats"])]
        answer["sizes"]["x".join(map(str, size))] = {"cold_s": cold, "warm_s": warm}
        if job["scores"]:
            name = "{} {}x{}.npy".format(job["way"], *size)
            np.save(os.path.join(job["scores"], name), scores)
        del scores
    answer["peak_bytes"] = memory_bytes("VmHWM")
    answer["mix_s"] = [timed(picture(size))[0] for size in job["mix"]]
    return answer


def memory_bytes(field: str) -> int:
    """VmRSS, what is resident of this process, or VmHWM, the greatest that was (Linux)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    answer = serve(json.loads(sys.argv[1]))
    print("ANSWER " + json.dumps(answer))
