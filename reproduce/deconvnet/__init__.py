"""DeconvNet: proposals, crops, inference, ensemble, training data, pictures of its layers."""
