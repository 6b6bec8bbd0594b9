"""Run Caffe nets in PyTorch, number for number: the runtime, its command line and what is built on them.

Importing this package imports no torch; `reproduce.net` does. It asks PyTorch for huge pages, which PyTorch
looks at when it makes its first tensor: without them the system clears and maps a blob of 85 MB in 20,000
pieces each time it is made, longer work than conv1_1 of VGG16 itself. A setting of the user's stays.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
