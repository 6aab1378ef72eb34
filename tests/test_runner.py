"""MMEngine's runner and its EMAHook drive the average on a real detector and real images."""

import pytest
import torch
from mmengine.fileio import load
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmyolo_ema import ExpMomentumEMA, checkpoint
from tests.helpers import assert_equal, forget_runs, small_config


def predictions(path):
    """Returns the boxes and scores that a run dumped, one tensor for each image."""
    return [torch.cat([p['pred_instances']['bboxes'], p['pred_instances']['scores'][:, None]], 1) for p in load(path)]


def dumping(cfg, which, path):
    cfg[f'{which}_evaluator'] = [cfg[f'{which}_evaluator'], dict(type='DumpDetResults', out_file_path=str(path))]
    return cfg


@pytest.fixture(scope='module', params=[True, False], ids=['update_buffers', 'copy_buffers'])
def run(request, tmp_path_factory):
    """Returns the folder of a run, with what it detected in measured.pkl, and its options."""
    options, folder = {'custom_hooks.0.update_buffers': request.param}, tmp_path_factory.mktemp('run')
    forget_runs()
    Runner.from_cfg(dumping(small_config(folder, **options), 'val', folder / 'measured.pkl')).train()
    return folder, options


@pytest.mark.slow
def test_validated_weights_are_those_in_the_file(run, demo_config, tmp_path):
    folder, options = run
    reloaded, raw = tmp_path / 'reloaded.pkl', tmp_path / 'raw.pkl'
    saved = str(folder / 'epoch_4.pth')
    checkpoint.use_safe_loader()
    Runner.from_cfg(dumping(demo_config('ema', load_from=saved, **options), 'test', reloaded)).test()
    with_raw = dumping(demo_config('raw', load_from=saved, **options), 'test', raw)
    with_raw.custom_hooks.append(dict(type='mmyolo_ema.RawWeightsHook'))
    Runner.from_cfg(with_raw).test()
    expected = predictions(folder / 'measured.pkl')
    assert len(expected) == 8
    assert all(len(boxes) > 0 for boxes in expected)
    assert_equal(expected, predictions(reloaded))
    assert any(
        boxes.shape != other.shape or not torch.equal(boxes, other) for boxes, other in zip(expected, predictions(raw))
    )


@pytest.mark.slow
def test_resumed_training_equals_the_uninterrupted_one(run, demo_config, tmp_path):
    folder, options = run
    checkpoint.use_safe_loader()
    Runner.from_cfg(demo_config('resumed', load_from=str(folder / 'epoch_2.pth'), resume=True, **options)).train()
    whole, resumed = (checkpoint.read(path / 'epoch_4.pth') for path in (folder, tmp_path / 'resumed'))
    assert whole['ema_state_dict']['steps'] == 8
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_equal(whole[part], resumed[part], part)


@pytest.mark.slow
def test_model_gets_its_raw_weights_back_after_validation(demo_config):
    runner = Runner.from_cfg(demo_config(**{'train_cfg.val_interval': 1, 'train_cfg.max_epochs': 1}))
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    assert isinstance(hook.ema_model, ExpMomentumEMA)
    assert hook.ema_model.steps == 2
    saved = checkpoint.raw_weights(checkpoint.read(f'{runner.work_dir}/epoch_1.pth'))
    assert_equal(dict(runner.model.state_dict()), saved)
    assert_equal(
        dict(hook.ema_model.module.state_dict()), dict(checkpoint.read(f'{runner.work_dir}/epoch_1.pth')['state_dict'])
    )
