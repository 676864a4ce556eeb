"""What the nodes of one autograd graph are: operations, ReLUs, composite activations."""
