"""How a job begins, or goes on: what it explains is written, or compared with what is written there."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, final

from guided_backprop.errors import ImageError, JobError, OptionError, OutputExistsError
from guided_backprop.jobs.explainer import Explainer
from guided_backprop.jobs.folder import Folder
from guided_backprop.jobs.pictures import MOST_DRAWN
from guided_backprop.jobs.plan import PLAN, Plan
from guided_backprop.jobs.source import Source
from guided_backprop.photos import read_image


@final
class Beginning:
    """Gives a plan its place in a folder.

    Args:
        folder: where the job is to be.
        source: where its photos are.
        explainer: what will explain.
        is_open: whether it is left open which pictures are drawn.
    """

    def __init__(self, folder: Folder, source: Source, explainer: Explainer, *, is_open: bool) -> None:
        self._folder, self._source, self._explainer, self._is_open = folder, source, explainer, is_open

    def begun(self, plan: Plan, *, goes_on: bool) -> Plan:
        """Write a plan into a folder without one; or, to go on, return the one that is there, if it is this one.

        Raises:
            OutputExistsError: the folder has something in it, and this is not to go on.
            JobError: it is another job, or nothing can be written.
            GuidedBackpropError: the model can't be explained so.
        """
        if not plan.photos:
            raise JobError(
                "a job needs a photo; received a folder without any. Pass a folder of image files, or look into the "
                "folders in it as well: recursive=True (--recursive)."
            )
        self._require_free(goes_on=goes_on)
        if PLAN not in self._folder.names():
            # What can't be explained is found before anything is written.
            self._explainer.kind(photo_size(plan, self._source))
            self._explainer.check_labels(plan.labels)
        with self._folder.planning():
            # Another process may have begun meanwhile.
            self._require_free(goes_on=goes_on)
            if PLAN not in self._folder.names():
                is_few = self._is_open and len(plan.photos) <= MOST_DRAWN
                return self._published(plan.with_pictures("all") if is_few else plan)
            known = self._known()
            known.refuse_other(self._asked(plan, known))
            return known

    def added(self, plan: Plan) -> Plan:
        """Take photos that are new into the job that is there, if all else is as it was; or begin one.

        Raises:
            JobError: a photo of the job has changed or is gone; and as :meth:`begun`.
        """
        self._require_free(goes_on=True)
        if PLAN not in self._folder.names():
            return self.begun(plan, goes_on=True)
        with self._folder.planning():
            known = self._known()
            larger = known.with_added(plan.photos)
            replace(self._asked(plan, known), additions=larger.additions).refuse_other(larger)
            if larger is known:
                return known
            self._explainer.kind(photo_size(known, self._source))
            self._explainer.check_labels(plan.labels)
            return self._published(larger)

    def _known(self) -> Plan:
        return Plan.of_text(self._folder.read(PLAN), str(self._folder))

    def _asked(self, plan: Plan, known: Plan) -> Plan:
        """Return what is asked for, where that is left open as the job began."""
        return plan.with_pictures(known.settings.pictures) if self._is_open else plan

    def _published(self, plan: Plan) -> Plan:
        with self._folder.writing(PLAN) as file:
            file.write(plan.text().encode())
        return plan

    def _require_free(self, *, goes_on: bool) -> None:
        names = self._folder.names()
        if names and not (goes_on and PLAN in names):
            advice = "or go on with its job: resume=True (--resume)" if PLAN in names else "or remove that"
            raise OutputExistsError(
                f"folder must be empty, or not be there; received folder={str(self._folder)!r}, which holds "
                f"{PLAN if PLAN in names else min(names)!r}. Choose another one, {advice}."
            )


def photo_size(plan: Plan, source: Source) -> tuple[int, int]:
    """Return width and height of a job's first photo that can be read: the same in each process."""
    for photo in plan.photos:
        with suppress(ImageError):
            return read_image(source.opened(photo)).size
    return (64, 64)


def as_json(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options as they come back from a file.

    Raises:
        OptionError: a file can't hold them.
    """
    try:
        held: Mapping[str, Any] = json.loads(json.dumps(options))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"options of a job must be what JSON can hold; received {options!r:.200} ({error}). Pass names and numbers."
        ) from error
    return held
