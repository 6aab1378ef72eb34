import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from mmyolo_ema import checkpoint
from mmyolo_ema.checkpoint import inspect
from mmyolo_ema.cli.checkpoint_tables import problems
from mmyolo_ema.hooks.average_log import drift

HEAD = [
    f'bbox_head.{convs}.{level}.{layer}.conv.weight'
    for convs in ('cls_convs', 'reg_convs')
    for layer in range(2)
    for level in range(3)
]
SHARED = [HEAD[first : first + 3] for first in range(0, 12, 3)]


def test_real_file_is_told(trained):
    inspection = inspect(trained)
    assert (inspection.epoch, inspection.iteration, inspection.has_optimizer) == (4, 8, True)
    places = {weights.kind: weights.key for weights in inspection.weights}
    assert places == dict(ema='state_dict', raw='ema_state_dict')
    assert inspection.average.updates == 8
    assert inspection.average.hook['type'] == 'mmyolo_ema.EMAHook'
    assert (inspection.average.hook['momentum'], inspection.average.hook['gamma']) == (0.05, 40)
    assert 0 < inspection.average.mean_age < 1
    assert inspection.size == trained.stat().st_size == sum(inspection.parts.values())
    assert inspection.parts['optimizer'] > 1.5 * inspection.parts['state_dict']
    assert [sorted(names) for names in inspection.shared] == [sorted(names) for names in SHARED]
    assert inspection.repeated == inspection.stale == []
    assert not any(weights.nonfinite for weights in inspection.weights)


def test_distance_is_the_drift_that_the_hook_logs(trained, detector):
    content = checkpoint.read(trained)
    averaged, raw = deepcopy(detector), detector
    averaged.load_state_dict(content['state_dict'])
    raw.load_state_dict(checkpoint.raw_weights(content))
    inspection = inspect(trained)
    assert inspection.distance.relative == pytest.approx(drift(averaged, raw), rel=1e-4)
    parts = {group.group for group in inspection.differences}
    assert {'backbone', 'neck', 'bbox_head', 'backbone: running statistics', 'neck: counts of batches'} <= parts


@pytest.mark.slow
def test_statistics_that_stopped_are_stale(frozen_statistics, train):
    inspection = inspect(train(ema_type='FrozenStatistics'))
    assert len(inspection.stale) == 76
    assert 'backbone.stem.0.bn' in inspection.stale
    (said,) = (line for line in problems(inspection) if line.startswith('stale'))
    # The horizon of a foreign class is not known.
    assert f'python tools/posthoc_ema.py build {Path(inspection.file).parent} --horizon H -o' in said
    assert inspection.average.mean_age is None, 'the schedule of a foreign class is not known'


@pytest.mark.slow
@pytest.mark.parametrize('update_buffers', [False, True])
def test_statistics_of_mmdetections_class_are_not_stale(train, update_buffers):
    inspection = inspect(train(ema_type='ExpMomentumEMA', update_buffers=update_buffers))
    assert inspection.stale == []
    # With update_buffers the count of batches stands still all the same.
    counts = next(group for group in inspection.differences if group.group == 'neck: counts of batches')
    assert bool(counts.differing) is update_buffers
    assert inspection.average.updates == 4
    assert inspection.average.mean_age > 0


def test_nan_and_infinity_are_named_for_each_set(trained, tmp_path):
    content = checkpoint.read(trained)
    content['state_dict']['neck.out_convs.0.conv.weight'][0] = float('nan')
    content['ema_state_dict']['module.backbone.stem.0.conv.weight'][0] = float('-inf')
    torch.save(content, tmp_path / 'broken.pth')
    ema, raw = inspect(tmp_path / 'broken.pth').weights
    assert ema.nonfinite == ['neck.out_convs.0.conv.weight']
    assert raw.nonfinite == ['backbone.stem.0.conv.weight']
    assert inspect(tmp_path / 'broken.pth').distance.relative is None


def test_further_average_is_told_by_what_the_file_says_of_it_alone(trained, tmp_path):
    content = checkpoint.read(trained)
    short = {f'module.{name}': value.clone() for name, value in content['state_dict'].items()}
    short['module.neck.out_convs.0.conv.weight'][0] = float('nan')
    content['ema_averages'] = dict(short=dict(short, steps=torch.tensor(5)))
    torch.save(content, tmp_path / 'a.pth')
    inspection = inspect(tmp_path / 'a.pth')
    ema, raw, further = inspection.weights
    assert (ema.nonfinite, raw.nonfinite, further.nonfinite) == ([], [], ['neck.out_convs.0.conv.weight'])
    # The config tells the schedule of the main average only.
    assert (further.updates, further.mean_age) == (5, None)
    assert 'NaN or infinity in the short weights: neck.out_convs.0.conv.weight' in problems(inspection)
    before = inspect(trained)
    assert (inspection.average, inspection.distance, inspection.shared, inspection.unmatched) == (
        before.average,
        before.distance,
        before.shared,
        [],
    )
    checkpoint.extract(tmp_path / 'a.pth', tmp_path / 'short.pth', 'short')
    assert inspect(tmp_path / 'short.pth').average.mean_age is None


def test_shared_tensors_that_were_stored_apart_are_repeated(trained, tmp_path):
    content = checkpoint.read(trained)
    content['ema_state_dict'] = {name: value.clone() for name, value in content['ema_state_dict'].items()}
    torch.save(content, tmp_path / 'apart.pth')
    inspection = inspect(tmp_path / 'apart.pth')
    assert inspection.shared == []
    assert [sorted(names) for names in inspection.repeated] == [sorted(names) for names in SHARED]


def test_file_without_average_and_config_is_told(tmp_path):
    weights = {'module.weight': torch.ones(2, 2, dtype=torch.bfloat16), 'extra': {}}
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    inspection = inspect(tmp_path / 'a.pth')
    assert (inspection.average, inspection.distance, inspection.epoch) == (None, None, None)
    assert not inspection.has_optimizer
    (weights,) = inspection.weights
    assert (weights.kind, weights.tensors, weights.numbers, weights.dtypes) == ('only', 1, 4, ['bfloat16'])


def test_sets_that_do_not_match_are_told(tmp_path):
    stored = {'steps': torch.tensor(3), 'module.a': torch.ones(1), 'module.b': torch.ones(2), 'module.c': torch.ones(1)}
    torch.save(dict(state_dict=dict(a=torch.ones(1), b=torch.ones(3)), ema_state_dict=stored), tmp_path / 'a.pth')
    assert inspect(tmp_path / 'a.pth').unmatched == ['b', 'c']
    torch.save(dict(state_dict=dict(a=torch.ones(1)), ema_state_dict=dict(steps=1)), tmp_path / 'b.pth')
    inspection = inspect(tmp_path / 'b.pth')
    assert (inspection.unmatched, inspection.distance) == (['a'], None)


@pytest.mark.parametrize('steps', [-5, 2**62, 10**30, float('inf'), torch.tensor(float('nan')), torch.ones(2), 'many'])
def test_count_that_cannot_be_gives_no_age(trained, tmp_path, steps):
    content = checkpoint.read(trained)
    content['ema_state_dict']['steps'] = steps
    torch.save(content, tmp_path / 'a.pth')
    assert inspect(tmp_path / 'a.pth').average.mean_age is None


def test_tensors_of_other_kinds_are_no_obstacle(tmp_path):
    weights = dict(
        empty=torch.ones(0),
        scalar=torch.tensor(1),
        eight=torch.ones(2, 2).to(torch.float8_e4m3fn),
        conjugate=torch.randn(2, 2, dtype=torch.complex64).conj(),
    )
    stored = {f'module.{name}': value for name, value in weights.items()}
    torch.save(dict(state_dict=weights, ema_state_dict=stored, optimizer=torch.ones(3)), tmp_path / 'a.pth')
    inspection = inspect(tmp_path / 'a.pth')
    assert inspection.distance.relative == 0
    assert not inspection.has_optimizer


def test_extracted_average_tells_its_updates(trained, tmp_path):
    checkpoint.extract(trained, tmp_path / 'ema.pth')
    inspection = inspect(tmp_path / 'ema.pth')
    assert inspection.average == inspect(trained).average
    assert [weights.kind for weights in inspection.weights] == ['ema']
    checkpoint.extract(trained, tmp_path / 'raw.pth', 'raw')
    assert inspect(tmp_path / 'raw.pth').average is None


def test_average_that_has_not_begun_is_told(trained, tmp_path):
    content = checkpoint.read(trained)
    for name, value in content['state_dict'].items():
        content['ema_state_dict'][f'module.{name}'] = value
    content['ema_state_dict']['steps'] = torch.tensor(0)
    torch.save(content, tmp_path / 'a.pth')
    inspection = inspect(tmp_path / 'a.pth')
    assert (inspection.average.updates, inspection.average.mean_age, inspection.distance.relative) == (0, None, 0)


@pytest.mark.slow
@pytest.mark.any_family
@pytest.mark.parametrize(
    'command',
    [
        'checkpoint.inspect(path)',
        "checkpoint.extract(path, out / 'a.pth', 'raw')",
        "checkpoint.extract(path, out / 'a.safetensors')",
        "checkpoint.publish(path, out / 'a', dtype=torch.float16)",
        'checkpoint.compare(path, path)',
        "checkpoint.compare(path, path, 'raw')",
    ],
)
def test_memory_stays_below_one_set_of_weights_and_a_fifth(large, tmp_path, command):
    path, size = large
    script = f"""
import torch
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from mmyolo_ema import checkpoint
import safetensors.torch
path, out = Path({str(path)!r}), Path({str(tmp_path)!r})
before = getrusage(RUSAGE_SELF).ru_maxrss
{command}
print((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.2 * size


@pytest.mark.parametrize('count', [1, 2])
def test_two_hooks_in_the_stored_config_are_told(tmp_path, count):
    hooks = ', '.join(["dict(type='EMAHook', momentum=0.1)", "dict(type='mmyolo_ema.EMAHook')"][:count])
    torch.save(
        dict(
            meta=dict(cfg=f'custom_hooks = [{hooks}]'),
            state_dict=dict(weight=torch.ones(1)),
            ema_state_dict={'module.weight': torch.zeros(1), 'steps': torch.tensor(3)},
        ),
        tmp_path / 'two.pth',
    )
    inspection = inspect(tmp_path / 'two.pth')
    assert inspection.average.hooks == count
    assert any('the config in the file has 2 EMAHooks' in line for line in problems(inspection)) == (count == 2)
