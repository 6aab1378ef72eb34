import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmyolo_ema.run_plan import plan_run
from mmyolo_ema.schedules import Constant, Ramp
from tests.helpers import ROOT

OURS, MMENGINES = 'mmyolo_ema.EMAHook', 'EMAHook'


def config(hook=None, **options):
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=10),
            train_dataloader=dict(batch_size=8),
            optim_wrapper=dict(type='OptimWrapper'),
            custom_hooks=[
                dict(type='NumClassCheckHook'),
                dict(dict(type=OURS, ema_type='mmyolo_ema.ExpMomentumEMA'), **(hook or {})),
            ],
        )
    )
    cfg.merge_from_dict(options)
    return cfg


@pytest.mark.parametrize(
    ('options', 'arguments', 'updates', 'per_epoch', 'images'),
    [
        ({}, {}, 10 * 13, 13, 8),
        ({}, dict(gpus=2), 10 * 7, 7, 16),
        ({'train_dataloader.drop_last': True}, {}, 10 * 12, 12, 8),
        ({'train_dataloader.batch_sampler': dict(drop_last=True)}, dict(gpus=2), 10 * 6, 6, 16),
        ({'train_dataloader.num_batch_per_epoch': 5}, {}, 10 * 5, 5, 8),
        ({'train_dataloader.num_batch_per_epoch': 50}, {}, 10 * 50, 50, 8),
        ({}, dict(iters=55), 55, 5.5, 8),
        ({'optim_wrapper.accumulative_counts': 4}, {}, 33, 13 / 4, 32),
        (
            {
                'optim_wrapper': dict(
                    _delete_=True,
                    constructor='C',
                    a=dict(optimizer={}, accumulative_counts=2),
                    b=dict(optimizer={}, accumulative_counts=4),
                )
            },
            {},
            65,
            6.5,
            16,
        ),
        ({'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=70)}, {}, 70, 13, 8),
    ],
)
def test_updates_are_counted_as_the_runner_makes_them(options, arguments, updates, per_epoch, images):
    plan = plan_run(config(**options), dataset_size=100, **arguments)
    assert (plan.updates, plan.updates_per_epoch, plan.batch_size) == (updates, per_epoch, images)
    assert (plan.place, plan.schedule, plan.begin) == (1, Ramp(), 0)


def test_run_of_iterations_needs_no_data():
    plan = plan_run(config(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=70)))
    assert (plan.updates, plan.updates_per_epoch) == (70, None)


def test_config_without_hook_gets_the_default_one():
    plan = plan_run(config(custom_hooks=[]), dataset_size=100)
    assert (plan.place, plan.schedule, plan.updates) == (None, Ramp(), 130)


def test_mmengines_hook_counts_iterations():
    plan = plan_run(
        config(
            dict(type=MMENGINES, ema_type='ExponentialMovingAverage', momentum=0.1),
            **{'optim_wrapper.accumulative_counts': 4},
        ),
        dataset_size=100,
    )
    assert (plan.updates, plan.batch_size, plan.schedule) == (130, 8, Constant(0.1))
    assert "MMEngine's EMAHook counts each iteration as an update" in plan.origin


@pytest.mark.parametrize(
    ('hook', 'begin'),
    [(dict(begin_epoch=3), 26), (dict(begin_epoch=1), 0), (dict(begin_iter=14), 13), (dict(begin_iter=1), 0)],
)
def test_average_that_begins_later_gets_fewer_updates(hook, begin):
    plan = plan_run(config(hook), dataset_size=100)
    assert (plan.begin, plan.updates) == (begin, 130 - begin)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        {'custom_hooks.0.begin_iter': 4},
        {'optim_wrapper.accumulative_counts': 3, 'custom_hooks.0.begin_iter': 2},
        {'optim_wrapper.accumulative_counts': 3, 'custom_hooks.0.begin_epoch': 2},
        {'train_dataloader.num_batch_per_epoch': 1},
        {'custom_hooks.0.type': 'EMAHook', 'optim_wrapper.accumulative_counts': 3},
    ],
)
def test_plan_is_what_the_runner_does(demo_config, options):
    cfg = demo_config(**{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 5, **options})
    if cfg.custom_hooks[0].type == 'EMAHook':
        del cfg.custom_hooks[0]['evaluate_on_origin']
    plan = plan_run(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model
    assert plan.updates == int(average.steps)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (
            {'custom_hooks': [dict(type='EMAHook'), dict(type='mmyolo_ema.EMAHook')]},
            'it has 2 EMAHooks in custom_hooks',
        ),
        ({'custom_hooks.1.ema_type': 'Mine'}, "the schedule of ema_type='Mine' is not known; known are ExpMomentumEMA"),
        ({'custom_hooks.1.interval': 1.5}, 'interval must be an integer above 0, but got 1.5'),
        ({'custom_hooks.1.begin_epoch': 11}, 'the average would begin after 130 iterations, but the run has 130'),
        ({'custom_hooks': 3}, 'custom_hooks must be a list, but got 3'),
        ({'custom_hooks.1.begin_epoch': 2, 'custom_hooks.1.begin_iter': 2}, 'begin_epoch=2 and begin_iter=2 exclude'),
        ({'custom_hooks.1.begin_iter': 'x'}, "begin_iter must be an integer of at least 0, but got 'x'"),
        (
            {'custom_hooks.1.begin_epoch': 2, 'train_cfg': dict(_delete_=True, max_iters=70)},
            'for a run that counts epochs',
        ),
        ({'train_cfg.max_epochs': 2.5}, 'max_epochs must be an integer of at least 1, but got 2.5'),
        ({'train_cfg.max_epochs': -1}, 'max_epochs must be an integer of at least 1, but got -1'),
        ({'optim_wrapper.accumulative_counts': 0}, 'accumulative_counts must be an integer of at least 1, but got 0'),
        ({'train_dataloader.batch_size': True}, 'batch_size must be an integer of at least 1, but got True'),
        ({'train_dataloader.batch_sampler': 'x'}, "batch_sampler must be a dictionary, but got 'x'"),
        ({'auto_scale_lr': 3}, 'auto_scale_lr must be a dictionary, but got 3'),
        ({'train_cfg': dict(_delete_=True)}, 'it has no train_cfg.max_epochs or max_iters; pass --iters'),
        ({'train_dataloader': dict(_delete_=True)}, 'it has no train_dataloader.batch_size; pass --iters'),
        ({'train_dataloader.batch_size': 200, 'train_dataloader.drop_last': True}, 'an epoch has no iterations'),
    ],
)
def test_config_that_does_not_tell_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        plan_run(config(**options), dataset_size=100)


def test_shipped_configs_are_understood():
    files = sorted(path for path in (ROOT / 'configs').glob('*/*.py') if path.parent.name != '_base_')
    assert len(files) > 6
    for path in files:
        assert plan_run(Config.fromfile(path), dataset_size=1000).updates > 0, path
