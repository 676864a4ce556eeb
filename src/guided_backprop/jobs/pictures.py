"""The pictures of a job, beside its shards: in folders as the photos lie, each whole when its shard is there."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from typing import final

from PIL import Image

from guided_backprop.explanations import Explanations
from guided_backprop.jobs.plan import Photo, Plan
from guided_backprop.show.names import FileNames
from guided_backprop.show.panels import MAPS
from guided_backprop.show.place import Place, picture_at

#: Of more photos none are drawn, unless that is asked for: pictures take as much time and room as maps.
MOST_DRAWN = 100
_PERCENTILE = 99.0


@final
class Pictures:
    """Which pictures there are of each photo: the same in each process, for names follow the plan's order.

    Args:
        plan: the job.
    """

    def __init__(self, plan: Plan) -> None:
        kind = plan.settings.pictures
        self._plan = plan
        self._panels = [panel for panel in MAPS if panel.ending and kind in ("all", panel.name)]

    def names(self, path: str) -> Sequence[Mapping[str, str]]:
        """Return the names of a photo's pictures by their kinds: for each label that is explained."""
        stems = self._stems[path] if self._panels else ()
        return [{panel.name: f"{stem}{panel.ending}" for panel in self._panels} for stem in stems]

    @property
    def are_drawn(self) -> bool:
        """Whether there are any."""
        return bool(self._panels)

    def drawn(self, path: str, explanations: Explanations, place: Place | None) -> Iterator[tuple[str, bytes]]:
        """Yield a photo's pictures, by their names; ``place`` puts a map back onto the whole of it."""
        pictures = explanations.pictures() if self._panels else None
        if pictures is None:
            return
        for names, image, attribution in zip(self.names(path), *pictures, strict=False):
            for panel in self._panels:
                held = BytesIO()
                Image.fromarray(picture_at(place, panel, image, attribution, _PERCENTILE)).save(held, "PNG")
                yield names[panel.name], held.getvalue()

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        names = FileNames()
        return {photo.path: [names.path_of(photo.path) for _ in range(_count(photo))] for photo in self._plan.photos}


def _count(photo: Photo) -> int:
    """Return how many labels of a photo are explained, at most."""
    best = re.fullmatch(r"top(\d+)", photo.label) if isinstance(photo.label, str) else None
    return int(best[1]) if best else 1
