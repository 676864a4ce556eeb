"""What checks of trust found, as parts of a report."""

import io

from guided_backprop.trust.faithfulness import Faithfulness
from guided_backprop.trust.intervals import said
from guided_backprop.trust.likeness import Trust, number
from guided_backprop.trust.similarity import METRICS
from guided_backprop.trust.verdict import SanityCheck


def randomised(check: SanityCheck) -> Trust:
    """Return what :func:`sanity_check` found as a part of a report: its sentence, its cascading curve, its figure."""
    places = {f"{name}, and all above": ("cascading", name) for name in check.names}
    places |= {"edges in the image": ("edges", ""), "random maps": ("random", "")}
    rows = []
    for title, place in places.items():
        means = {METRICS[metric]: row.mean for metric in METRICS if (row := check.row(*place, metric))}
        if means:
            numbers = {name: number(mean, 2) for name, mean in means.items()}
            rows.append({f"{check.method}, layers randomised": title, **numbers})
    figure = io.BytesIO()
    check.plot().savefig(figure, format="png", dpi=110)
    return Trust("Do the maps depend on what was learned?", check.sentence, rows, figure.getvalue())


def compared(found: Faithfulness) -> Trust:
    """Return what :func:`faithfulness` found as a part of a report: its sentence, and the areas under its curves."""
    rows = []
    for name in found.curves["deletion"]:
        areas = {curve: found.area(name, curve) for curve in found.curves}
        rows.append({"map": name, **{curve: said(area.mean, area.interval) for curve, area in areas.items()}})
    return Trust("Does what the maps mark matter to the model?", found.sentence, rows)
