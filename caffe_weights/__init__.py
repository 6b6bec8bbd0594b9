"""Caffe's files: nets as text and binary, weights in five formats, mean files. Imports no torch.

Start at `export.read_weights` and `export.write_weights`; `weights.Weights` is what they exchange.
"""

__version__ = "0.1.0"
