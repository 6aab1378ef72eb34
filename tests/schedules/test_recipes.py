import pytest

from mmyolo_ema.schedules import RECIPES, Ramp, figures


@pytest.mark.parametrize(
    ('name', 'epochs', 'age_deviation'),
    [
        ('YOLOv5', 10.8, 0.036),
        ('YOLOv8', 10.8, 0.022),
        ('YOLOX', 2.7, 0.009),
        ('RTMDet', 10.8, 0.036),
        ('PP-YOLOE+', 2.7, 0.034),
        ('RT-DETR', 1.35, 0.019),
        ('D-FINE-L', 2.7, 0.034),
    ],
)
def test_horizon_and_age_deviation_are_as_published(name, epochs, age_deviation):
    recipe = next(recipe for recipe in RECIPES if recipe.name == name)
    at_end = recipe.at_end()
    assert at_end.horizon / recipe.updates_per_epoch == pytest.approx(epochs, rel=0.01)
    assert round(at_end.age_deviation / at_end.updates, 3) == age_deviation


def test_ramp_is_forgotten_at_the_end():
    recipe = next(recipe for recipe in RECIPES if recipe.name == 'RTMDet')
    (with_ramp,) = figures(Ramp(recipe.momentum, 2000), [recipe.at_end().updates])
    assert recipe.at_end().mean_age == pytest.approx(with_ramp.mean_age, rel=1e-6)
