"""The search for an Auto-DeepLab: search space, relaxation, optimisation, decoding (Liu et al., CVPR 2019).

`space` enumerates it, `supernet` is the continuous relaxation, `run` optimises weights and architecture in
turn, `decoding` reads an architecture off, `draw` shows it. Importing this brings in no torch.
"""
