"""Power model of the published benchmark (PWR, arXiv 2412.17484, `utils/const.go` of its repository), in W.

A GPU with anything on it draws its full power, an idle one its idle power. GPU models that the trace hides behind G2
and G3 count as A10 and A100.
"""

SOCKET_IDLE_W, SOCKET_FULL_W, SOCKET_CORES = 15.0, 120.0, 16
"""Draw of a CPU socket and its cores of two threads: every published node counts as E5-2682 v4."""

GPU_W = {
    "T4": (10.0, 70.0),
    "A10": (30.0, 150.0),
    "P100": (25.0, 250.0),
    "V100M16": (30.0, 300.0),
    "V100M32": (30.0, 300.0),
    "A100": (50.0, 400.0),
    "G2": (30.0, 150.0),
    "G3": (50.0, 400.0),
}
"""Idle and full draw of one GPU."""


def gpu_watts(model: str) -> tuple[float, float]:
    """Idle and full draw of a GPU of the model. Raises ValueError for a model that the power model does not know."""
    if model not in GPU_W:
        raise ValueError(f"the power model knows no GPU {model!r}; known: {', '.join(GPU_W)}")
    return GPU_W[model]
