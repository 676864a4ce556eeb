"""What a network's outputs say as classes: probabilities, and the best of them."""

import numpy as np
from numpy.typing import NDArray

from guided_backprop.arrays import NumpyArray

# Of how many classes probabilities are told.
BEST = 5


def probabilities(outputs: NumpyArray, head: str | None) -> NDArray[np.float64] | None:
    """Return class probabilities ``(N, K)`` for a model's outputs, or None if they are no classification.

    Args:
        outputs: the model's own outputs.
        head: what the model ends in, as in ``Explanations.head``. Without a head, rows in [0, 1] that sum
            to 1 are probabilities already; others are logits, which a softmax makes into probabilities.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.models import probabilities
        >>> probabilities(np.array([[0.0, 0.0]]), None).tolist()
        [[0.5, 0.5]]
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    rows = outputs.astype(np.float64)
    if head in ("log_softmax", "log_sigmoid"):
        return np.exp(rows)
    if head in ("softmax", "sigmoid") or _are_probabilities(rows):
        return rows
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def best_classes(shares: NDArray[np.float64]) -> list[int]:
    """Return the ids of the five classes of the highest probabilities ``(K,)``, best first.

    Example:
        >>> import numpy as np
        >>> from guided_backprop.models import best_classes
        >>> best_classes(np.array([0.2, 0.5, 0.3]))
        [1, 2, 0]
    """
    return [int(label) for label in np.argsort(-shares, kind="stable")[:BEST]]


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    # Logits that happen to be positive and to sum to 1 in each row would be taken for probabilities: they hardly do.
    return bool((rows >= 0).all()) and np.allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-3)
