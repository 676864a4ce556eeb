"""One run over many photos: batch after batch is read, explained, written, printed and dropped."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from guided_backprop.arrays import Images, Labels
from guided_backprop.commands.shared import Photos, print_failures, printable
from guided_backprop.coverage import Coverage
from guided_backprop.errors import ImageError
from guided_backprop.explanations import Explanations
from guided_backprop.labels.parse import parse_label
from guided_backprop.models import Batch, View, VisionModel, best_classes, probabilities
from guided_backprop.progress import said_elsewhere


class Written(NamedTuple):
    """A batch's explanations, and for each image the names of its files by kind."""

    explanations: Explanations
    files: Sequence[Mapping[str, str]]


# From images, their names and their labels to what was written of them.
Write = Callable[[Images, Sequence[str], Labels], Written]


class Run:
    """One run of a command.

    Args:
        vision: the model.
        photos: what is explained.
        output: where the files are, for people.
        write: explains a batch and keeps it.
    """

    def __init__(self, vision: VisionModel, photos: Photos, output: Path, write: Write) -> None:
        # A pipe has no width: nothing is folded there.
        width = None if sys.stdout.isatty() else 10_000
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._vision, self._photos, self._output, self._write = vision, photos, output, write
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
            for batch in self._vision.batches(self._photos.paths, self._vision.at_once or batch_size):
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
        written = self._write(batch.images, [str(path) for path in paths], self._photos.labels_of(batch))
        if labels is not None and not isinstance(labels, str) and not self._explained:
            # A wrong label of the last image is found now, and not when all the others are done.
            parse_label(labels, len(labels)).explained(written.explanations.outputs)
        self._vision.require_names(written.explanations.outputs)
        self._coverages.append(written.explanations.coverage)
        self._head = written.explanations.head
        self._explained += len(paths)
        self._print(paths, written, [self._vision.view(*size) for size in batch.sizes])

    def _print(self, paths: Sequence[Path], written: Written, views: Sequence[View | None]) -> None:
        explanations, class_name = written.explanations, self._vision.class_name
        shares = probabilities(explanations.outputs, explanations.head)
        labels_of_each = len(written.files) // len(paths)
        for row, files in enumerate(written.files):
            label, score = int(explanations.labels[row]), float(explanations.scores[row])
            facts = [("explained", f"{class_name(label)}, score {score:.4g}")]
            is_first = row % labels_of_each == 0
            if shares is not None and is_first:
                facts += [(f"{shares[row, label]:.1%}", class_name(label)) for label in best_classes(shares[row])]
            view = views[row // labels_of_each]
            facts += [("warning", view.warning)] if view is not None and view.warning else []
            facts += [(kind, printable(self._output / name)) for kind, name in files.items()]
            if is_first:
                self._console.print(printable(paths[row // labels_of_each]), style="bold", soft_wrap=True)
            self._console.print(_grid(facts))


def _grid(facts: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=11, no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, fact)
    return table
