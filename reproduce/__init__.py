"""Run Caffe nets in PyTorch, number for number: the runtime, its command line and what is built on them.

Importing this package imports no torch; `reproduce.net` does.
"""
