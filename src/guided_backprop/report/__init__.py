"""One page to pass on: about some images, their maps and how far to believe them; or about many maps, by class."""

from guided_backprop.report.page import Report, Trust, check_ready, randomised
from guided_backprop.report.summary import write_summary

__all__ = ["Report", "Trust", "check_ready", "randomised", "write_summary"]
