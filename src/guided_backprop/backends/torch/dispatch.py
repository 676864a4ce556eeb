"""What sees the operations of a run as PyTorch dispatches them."""

from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Sees each operation of this thread; what is done with it a subclass says."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled while a model is explained, so it need not be turned off here.

        To turn it off, PyTorch imports its compiler, which takes longer than most explanations.
        """
        return False
