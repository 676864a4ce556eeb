"""The packages of the extra ``[export]``, which are imported when a graph is written or run."""

from functools import partial

from guided_backprop.extras import imported

#: Return a package of the extra; MissingExtraError where it isn't installed.
package = partial(imported, who="an exported graph needs", install="'guided-backprop[export]'")
