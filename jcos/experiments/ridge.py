"""Linear probes: what can be read off tokens by a fitted line."""

import numpy as np
from jaxtyping import Float


def ridge(
    features: Float[np.ndarray, "n *axes D"],
    targets: Float[np.ndarray, "n Q"],
    others: Float[np.ndarray, "m *axes D"],
    penalty: float,
) -> Float[np.ndarray, "m *axes Q"]:
    """Linear regression of the targets on standardised features, one for each of the axes, applied
    to other samples. penalty: of the weights' square, per sample."""
    x, z = (np.moveaxis(a, 0, -2).astype(np.float64) for a in (features, others))
    mean, size = x.mean(-2, keepdims=True), x.std(-2, keepdims=True)
    # What does not vary, but for rounding, tells nothing.
    size = np.where(size > 1e-5, size, np.inf)
    x, z = (x - mean) / size, (z - mean) / size
    centre = targets.mean(0)
    gram = np.swapaxes(x, -1, -2) @ x
    gram = gram + penalty * len(features) * np.eye(gram.shape[-1])
    weights = np.linalg.solve(gram, np.swapaxes(x, -1, -2) @ (targets - centre))
    return np.moveaxis(z @ weights + centre, -2, 0)
