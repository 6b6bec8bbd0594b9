"""Packaging: three packages listed by name, since tests and benchmarks must never be installed."""

from setuptools import setup

TEST = [
    "pytest>=8",
    "hypothesis>=6",
    "opencv-python-headless>=4.5,<5",
    "scikit-learn>=1.4",
    "lmdb>=1.4",
    "tensorboard>=2.16",
    "grpcio-tools>=1.76",
    "build>=1",
    "ruff>=0.14",
    "mypy>=1.18",
    "types-protobuf",
]

setup(
    packages=[
        "caffe_weights",
        "surgery",
        "reproduce",
        "reproduce.commands",
        "reproduce.data",
        "reproduce.deconvnet",
        "reproduce.demo_data",
        "reproduce.layers",
        "reproduce.nets",
        "reproduce.parity",
        "reproduce.published",
        "reproduce.published.checks",
        "reproduce.search",
    ],
    package_data={
        "caffe_weights": ["caffe.proto", "*.pyi", "py.typed"],
        "surgery": ["py.typed"],
        "reproduce": ["py.typed"],
        "reproduce.data": ["splits/*.txt"],
        "reproduce.published": ["tables/*", "results/*.json"],
        "reproduce.demo_data": ["*.caffemodel", "*.caffemodel.gz", "*.prototxt", "*.npz"],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.5",
        "numpy>=1.26",
        "scipy>=1.11",
        "h5py>=3.10",
        "pillow>=10",
        "click>=8.1",
        "protobuf>=7.35.1,<8",
        "safetensors>=0.5",
        "rich>=13",
        "matplotlib>=3.8",
    ],
    extras_require={
        "test": TEST,
        "lmdb": ["lmdb>=1.4"],
        "tensorboard": ["tensorboard>=2.16"],
        "crf": ["pydensecrf2>=1.1"],  # builds with a C++ compiler
        "bench": ["psutil>=5.9", "onnxruntime>=1.17", "openvino>=2024.0"],
    },
    entry_points={
        "console_scripts": [
            "fcn = reproduce.cli:main",
            "convert-weights = reproduce.cli:convert_weights_main",
        ],
        "pytest11": ["fcn-goldens = reproduce.goldens_option"],
    },
)
