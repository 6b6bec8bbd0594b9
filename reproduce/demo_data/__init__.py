"""What `fcn demo` runs on: a trained model, digits held out of its training, the script that made both."""
