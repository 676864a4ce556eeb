"""Everything that makes a PyTorch model faster, beside the idea: what optimize() learns, folds and packs."""
