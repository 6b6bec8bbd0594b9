"""The PyTorch floor: nets executed as Caffe executes them, and the command line. Imports no torch itself."""
