"""What may hide a ReLU, though no operation there is one: followed through the model, judged by values."""
