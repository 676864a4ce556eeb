"""The packages of the extra ``[jobs]``, which are imported when a job needs them."""

from functools import partial

from guided_backprop.extras import imported

#: Return a package of the extra; MissingExtraError where it isn't installed.
package = partial(imported, who="jobs need", install="'guided-backprop[jobs]'")
