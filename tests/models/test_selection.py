"""Which tensors are averaged: those that ``include`` and ``exclude`` leave; the others are the model's own."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mmyolo_ema import ExpMomentumEMA
from tests.helpers import change

FILTERS = [
    (dict(exclude=['^linear']), {'linear.weight', 'linear.bias'}),
    (dict(exclude=['weight$', 'running']), {'linear.weight', 'norm.weight', 'norm.running_mean', 'norm.running_var'}),
    (dict(include=['^norm']), {'linear.weight', 'linear.bias'}),
    (dict(include=['^norm', 'bias'], exclude=['norm.bias']), {'linear.weight', 'norm.bias'}),
]


@pytest.mark.parametrize('update_buffers', [True, False])
@pytest.mark.parametrize(('options', 'excluded'), FILTERS, ids=[str(options) for options, _ in FILTERS])
def test_excluded_tensors_are_copied_and_the_others_averaged(net, options, excluded, update_buffers):
    options = dict(options, momentum=0.1, gamma=3, interval=2, update_buffers=update_buffers)
    averaged = ExpMomentumEMA(net, **options)
    plain = ExpMomentumEMA(net, **{key: options[key] for key in ('momentum', 'gamma', 'interval', 'update_buffers')})
    for _ in range(6):
        change(net)
        averaged.update_parameters(net)
        plain.update_parameters(net)
    for name, value in averaged.module.state_dict().items():
        expected = net if name in excluded else plain.module
        assert torch.equal(value, expected.state_dict()[name]), name
        assert name not in excluded or value.data_ptr() != net.state_dict()[name].data_ptr()


def test_shared_tensor_is_excluded_by_any_of_its_names():
    model = nn.ModuleDict(dict(student=nn.Linear(2, 2), teacher=nn.Linear(2, 2)))
    model.teacher.weight = model.student.weight
    averaged = ExpMomentumEMA(model, 0.1, 1, exclude=['^teacher'])
    assert averaged.selection.excluded(model) == ['student.weight', 'teacher.weight', 'teacher.bias']
    for _ in range(2):
        averaged.update_parameters(change(model))
    assert torch.equal(averaged.module.student.weight, model.student.weight)
    assert averaged.module.teacher.weight is averaged.module.student.weight
    assert not torch.equal(averaged.module.student.bias, model.student.bias)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda average: pickle.loads(pickle.dumps(average))])
def test_filter_is_part_of_a_copy(net, copied):
    averaged = copied(ExpMomentumEMA(net, 0.1, 1, exclude=['bias']))
    for _ in range(2):
        averaged.update_parameters(change(net))
    assert torch.equal(averaged.module.linear.bias, net.linear.bias)
    assert not torch.equal(averaged.module.linear.weight, net.linear.weight)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (
            dict(exclude=['^liner']),
            ValueError,
            r"exclude=\['\^liner'\]: '\^liner' matches no tensor of the model: did you mean linear",
        ),
        (dict(include=['linear', 'nrom.weight']), ValueError, "'nrom.weight' matches no .* did you mean norm.weight"),
        (dict(exclude=['wieght$']), ValueError, r"'wieght\$' matches no tensor of the model: did you mean weight"),
        (dict(exclude=['zzz']), ValueError, "'zzz' matches no tensor of the model$"),
        (dict(exclude=['(']), ValueError, r"exclude: '\(' is no regular expression: missing \)"),
        (dict(exclude='^teacher'), TypeError, r"exclude must be a list of regular expressions, .* but got '\^teacher'"),
        (dict(include=[1]), TypeError, r'include must be a list of regular expressions, .* but got \[1\]'),
        (dict(include=[]), ValueError, r'include=\(\) and exclude=\(\) leave no parameter to average'),
        (dict(exclude=['weight', 'bias']), ValueError, 'leave no parameter to average'),
    ],
)
def test_wrong_filter_is_refused_with_its_value(net, options, error, message):
    with pytest.raises(error, match=message):
        ExpMomentumEMA(net, **options)
