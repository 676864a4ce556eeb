"""How a torch model is asked: called, cut at a layer, run so that each operation shows, copied."""
