"""What can explain images: called, or batch by batch; a method, or what is built around one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from guided_backprop.arrays import Array, Images, Labels
from guided_backprop.explanations import Explanations
from guided_backprop.foreign import OF_METHODS, Answering, answering
from guided_backprop.methods.data import batches_of
from guided_backprop.subject import Subject


class Explainer(Answering, ABC):
    """What explains images of one model."""

    answers = OF_METHODS

    @abstractmethod
    def held(self) -> tuple[Subject, int | None]:
        """Return the model and what is said about it, and how many images are explained at once."""

    @abstractmethod
    def explain(
        self, images: Images, labels: Labels = None, *, mask: Array | None = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image; see :meth:`Method.explain`."""

    @answering
    def __call__(
        self, images: Images, labels: Labels = None, *, mask: Array | None = None, progress: bool | None = None
    ) -> Explanations:
        """Explain the score of each image: the same as :meth:`explain`."""
        return self.explain(images, labels, mask=mask, progress=progress)

    @answering
    def explain_batches(
        self, data: Images, labels: Labels = None, *, mask: Array | None = None
    ) -> Iterator[Explanations]:
        """Explain data that is larger than memory: yield the explanations of one batch after the other.

        Args:
            data: a ``tf.data.Dataset`` or PyTorch ``DataLoader`` or another iterable of batches, with or without
                labels, read once; or a PyTorch ``Dataset`` of single images, of which ``batch_size`` are explained at
                once, or 32.
            labels: as for :meth:`Method.explain`, for every batch: a class id, None, "top5"... Labels of each image
                come with the data.
            mask: as for :meth:`Method.explain`, for every batch.

        Raises:
            OptionError: labels are given, and the data has its own.
            ImageError: data is one batch, or holds something else than batches.
            GuidedBackpropError: all that :meth:`Method.explain` raises.

        Example:
            >>> import torch
            >>> from guided_backprop import GuidedBackprop
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
            >>> data = torch.utils.data.TensorDataset(torch.rand(5, 4), torch.tensor([0, 1, 1, 0, 1]))
            >>> loader = torch.utils.data.DataLoader(data, batch_size=2)
            >>> [explanations.labels.tolist() for explanations in GuidedBackprop(model).explain_batches(loader)]
            [[0, 1], [1, 0], [1]]
        """
        batches = batches_of(*self.held(), data, labels)
        return (self.explain(batch.images, batch.labels, mask=mask) for batch in batches)
