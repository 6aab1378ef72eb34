"""Momentum at a step of the training, and what it means for the average.

The one place that knows the formula. Plain Python floats: no torch, no numpy.

A step is one call of the average's update. Step 0 copies the source, so its
momentum is 1; at a later step t the averaged weights become
``(1 - momentum_t) * averaged + momentum_t * source``.
"""

import math

__all__ = ['aged', 'mean_age', 'momentum_at', 'suited']


def momentum_at(step: int, momentum: float = 0.0002, gamma: float = 2000) -> float:
    """Returns the momentum of an update, ramped down exponentially from 1.

    ``(1 - momentum) * exp(-(1 + step) / gamma) + momentum``, the ramp that
    YOLOv5 introduced and YOLOX and RTMDet train with. It comes within twice its
    final value after ``gamma * ln(1 / momentum)`` steps, not after ``gamma``.

    Args:
        step: Number of updates before this one. Step 0 copies, whatever this
            function returns for it.
        momentum: Momentum that the ramp ends at, in (0, 1): the weight of the
            newest source. Its inverse is the horizon, in updates. Defaults to
            0.0002.
        gamma: Length scale of the ramp, in updates, above 0. Defaults to 2000.

    Returns:
        The weight of the source in this update, in (0, 1).

    Example:
        >>> round(momentum_at(1), 6)
        0.999001
        >>> round(momentum_at(100_000), 6)
        0.0002
    """
    return (1 - momentum) * math.exp(-float(1 + step) / gamma) + momentum


def mean_age(updates: int, momentum: float = 0.0002, gamma: float = 2000, interval: int = 1) -> float:
    """Returns how old the weights in the average are, in updates, on average.

    The average after step T is ``sum_t w(t) * source_t`` with weights that sum
    to 1; its mean age is ``T - sum_t w(t) * t``. It follows from averaging the
    signal t itself: each step ages what is there by one, and an update with
    momentum m replaces the share m of it by something of age 0.

    Args:
        updates: Number of updates made, steps 0 to ``updates - 1``; at least 1.
        momentum: As in :func:`momentum_at`. Defaults to 0.0002.
        gamma: As in :func:`momentum_at`. Defaults to 2000.
        interval: The average moves only at steps that are a multiple of it.
            Defaults to 1.

    Returns:
        The mean age in updates: 0 after the first, towards
        ``(1 - momentum) / momentum`` in a long run with ``interval=1``.

    Example:
        >>> round(mean_age(2_000, momentum=0.0001), 1)
        1.7
        >>> round(mean_age(277_000, momentum=0.0001))
        9999
    """
    age = 0.0
    for step in range(1, updates):
        age = aged(age, step, momentum_at(step, momentum, gamma), interval)
    return age


def aged(age: float, step: int, momentum: float, interval: int = 1) -> float:
    """Returns the mean age of the average after one more update.

    Args:
        age: The mean age before it, in updates.
        step: Number of updates before it.
        momentum: The weight of the source in it, in [0, 1].
        interval: As in :func:`mean_age`. Defaults to 1.

    Example:
        >>> aged(19.0, step=480, momentum=0.05)
        19.0
    """
    return (age + 1) * (1 - momentum) if step % interval == 0 else age + 1


def suited(updates: int, share: float = 0.04) -> tuple[float, float]:
    """Returns the momentum and gamma that make the average a given share of a run old at the run's end.

    ``momentum = 1 / (share * updates + 1)``, whose mean age in the long run is ``share * updates``, and ``gamma`` such
    that the ramp, which comes within twice the final momentum after ``gamma * ln(1 / momentum)`` updates, takes a
    quarter of the run. For 100 updates and more the share is met within a twentieth of it.

    Args:
        updates: Number of updates in the run, at least 1.
        share: Mean age at the end, as a share of the run, in (0, 0.1]. Defaults to 0.04, that of the long COCO recipes.

    Returns:
        The momentum and gamma.

    Example:
        >>> momentum, gamma = suited(480)
        >>> round(momentum, 3), round(gamma), round(mean_age(480, momentum, gamma) / 480, 3)
        (0.05, 40, 0.04)
    """
    momentum = 1 / (share * updates + 1)
    return momentum, updates / 4 / math.log(1 / momentum)
