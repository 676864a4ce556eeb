"""One page about some images, to pass on: their maps by several methods, and how far to believe them."""

from guided_backprop.report.page import Report, Trust, check_ready, randomised

__all__ = ["Report", "Trust", "check_ready", "randomised"]
