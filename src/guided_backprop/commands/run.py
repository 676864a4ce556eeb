"""One run over photos for a page: batch after batch is read, explained, drawn, printed and dropped."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from guided_backprop.arrays import Images, Labels
from guided_backprop.commands.facts import facts_grid
from guided_backprop.commands.shared import Photos, print_failures, printable
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError
from guided_backprop.explanations import Explanations
from guided_backprop.labels.parse import parse_label
from guided_backprop.models import Batch, View, VisionModel, best_classes, probabilities
from guided_backprop.progress import said_elsewhere
from guided_backprop.show.place import Place

# From images, their names, their labels and their places on their photos to what was found.
Write = Callable[[Images, Sequence[str], Labels, Sequence[Place | None]], Explanations]


class Run:
    """One run of a command.

    Args:
        vision: the model.
        photos: what is explained.
        write: explains a batch and keeps it.
    """

    def __init__(self, vision: VisionModel, photos: Photos, write: Write) -> None:
        # A pipe has no width: nothing is folded there.
        width = None if sys.stdout.isatty() else 10_000
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._vision, self._photos, self._write = vision, photos, write
        self._coverages: list[Coverage] = []
        self._head: str | None = None
        self._explained = 0
        self.failed = 0

    def explain(self, batch_size: int) -> None:
        """Explain all photos that can be read, and say what was seen in each.

        Raises:
            ImageError: none can be read.
        """
        self._console.print(str(self._vision), soft_wrap=True)
        bar = Progress(console=self._console, transient=True, disable=not self._console.is_terminal)
        with said_elsewhere(), bar as progress:
            task = progress.add_task("explaining", total=len(self._photos.paths))
            for batch in self._vision.batches(self._photos.paths, self._vision.at_once or batch_size, places=True):
                print_failures(batch)
                self.failed += len(batch.failures)
                if batch.rows:
                    self._explain_batch(batch)
                progress.advance(task, len(batch.rows) + len(batch.failures))
        if not self._explained:
            raise ImageError(
                f"at least one image must be readable; received {self.failed} that are not. "
                "Nothing was written: pass other files."
            )

    def finish(self, what: str) -> None:
        """Say what was done to the whole."""
        if self._head:
            self._console.print(f"scores: the logits in front of the model's {self._head}")
        self._console.print(f"coverage: {Coverage.merge(self._coverages)}")
        self._console.print(f"{self._explained} of {self._explained + self.failed} images {what}")

    def _explain_batch(self, batch: Batch) -> None:
        paths = [self._photos.paths[row] for row in batch.rows]
        labels = self._photos.labels
        names = [str(path) for path in paths]
        explanations = self._write(batch.images, names, self._photos.labels_of(batch), batch.places)
        if labels is not None and not self._explained:
            # A wrong label of the last image is found now, and not when all the others are done.
            parse_label(labels, len(labels)).explained(explanations.outputs)
        self._vision.require_names(explanations.outputs)
        self._coverages.append(explanations.coverage)
        self._head = explanations.head
        self._explained += len(paths)
        self._print(paths, explanations, [self._vision.view(*size) for size in batch.sizes])

    def _print(self, paths: Sequence[Path], explanations: Explanations, views: Sequence[View | None]) -> None:
        class_name = self._vision.class_name
        shares = probabilities(explanations.outputs, explanations.head)
        for row, (path, view) in enumerate(zip(paths, views, strict=True)):
            label, score = int(explanations.labels[row]), float(explanations.scores[row])
            facts = [("explained", f"{class_name(label)}, score {score:.4g}")]
            if shares is not None:
                facts += [(f"{shares[row, best]:.1%}", class_name(best)) for best in best_classes(shares[row])]
            facts += [("warning", view.warning)] if view is not None and view.warning else []
            self._console.print(printable(path), style="bold", soft_wrap=True)
            self._console.print(facts_grid(facts))
