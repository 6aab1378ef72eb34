"""The momentum of each update of an average, what it makes of the average, and which one suits a run. No torch."""

from mmyolo_ema.schedules.advice import (
    SUITED_SHARE,
    USUAL_AGES,
    advice,
    instead_of_decay,
    is_nearly_raw,
    is_raw,
    of_age,
    ramp_of_age,
    rescaled,
    rounded,
    suggested,
    suited,
    three_digits,
)
from mmyolo_ema.schedules.figures import MOST_UPDATES, Figures, Profile, aged, figures, mean_age, profile
from mmyolo_ema.schedules.lengths import in_updates
from mmyolo_ema.schedules.momenta import (
    Annealing,
    Constant,
    Power,
    Ramp,
    Recorded,
    Repeated,
    Restarted,
    Schedule,
    Segmented,
    Uniform,
    momentum_at,
)
from mmyolo_ema.schedules.recipes import RECIPES, Recipe

__all__ = [
    'MOST_UPDATES', 'RECIPES', 'SUITED_SHARE', 'USUAL_AGES', 'Annealing', 'Constant', 'Figures', 'Power',
    'Profile', 'Ramp', 'Recipe', 'Recorded', 'Repeated', 'Restarted', 'Schedule', 'Segmented', 'Uniform',
    'advice', 'aged', 'figures', 'in_updates', 'instead_of_decay',
    'is_nearly_raw', 'is_raw', 'mean_age', 'momentum_at', 'of_age', 'profile', 'ramp_of_age', 'rescaled', 'rounded',
    'suggested', 'suited', 'three_digits'
]
