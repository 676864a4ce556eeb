"""One page to pass on: about some images, their maps and how far to believe them; or about many maps, by class."""

from guided_backprop.report.checks import compared, randomised
from guided_backprop.report.page import Report, Trust, check_ready
from guided_backprop.report.summary import write_summary

__all__ = ["Report", "Trust", "check_ready", "compared", "randomised", "write_summary"]
