"""Nobody wins by not working."""

import pytest

from benchmarks import agreement
from benchmarks.agreement import check_agreement
from benchmarks.contenders import OURS, makers


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_every_class_computes_our_average(device):
    differences = check_agreement(device)
    assert set(differences) == {OURS, 'mmdet', 'mmengine', 'torch', 'timm', 'ema-pytorch'}
    assert max(differences.values()) < 1e-5


def with_update(monkeypatch, update):
    """Gives MMEngine's class another update."""

    def makers_with_another(update_buffers):
        made = makers(update_buffers)

        def other(*args):
            contender = made['mmengine'](*args)
            return contender._replace(update=lambda: update(contender))

        return {**made, 'mmengine': other}

    monkeypatch.setattr(agreement, 'makers', makers_with_another)


@pytest.mark.parametrize(
    'update',
    [
        lambda contender: None,
        lambda contender: contender.update() or contender.update(),
        lambda contender: contender.module[0][1].running_mean.fill_(float('nan')),
    ],
    ids=['idle', 'twice', 'nan'],
)
def test_a_class_that_does_other_work_is_named(monkeypatch, update):
    with_update(monkeypatch, update)
    with pytest.raises(RuntimeError, match=f'mmengine does not compute the same average as {OURS}: .* apart'):
        check_agreement()


def test_classes_that_cannot_leave_the_buffers_out_are_not_asked_to():
    assert 'ema-pytorch' in makers(update_buffers=True)
    assert 'ema-pytorch' not in makers(update_buffers=False)


def test_classes_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr('benchmarks.contenders.find_spec', lambda name: None)
    assert list(makers(update_buffers=True)) == [OURS, 'mmdet', 'mmengine', 'torch']
