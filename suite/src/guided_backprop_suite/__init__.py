"""Is every ReLU guided, however the network is written? Networks as data, and a verdict on any library.

An adapter is one function, ``(model, images, labels) -> map``. ``guided-backprop-suite torch --adapter mine:explain``
prints a table of what is right, an error, or wrong. Importing this imports no framework.
"""

from guided_backprop_suite.cases import Adapter, Asked, Case, Framework, Verdict, judge
from guided_backprop_suite.networks import Network, networks

__all__ = ["Adapter", "Asked", "Case", "Framework", "Network", "Verdict", "judge", "networks"]
