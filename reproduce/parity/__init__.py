"""Two runs of a net against each other, blob by blob; `reproduce.parity.check.check` is the way in."""
