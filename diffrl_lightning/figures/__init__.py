"""Drawing: arrays in, matplotlib figures out."""
