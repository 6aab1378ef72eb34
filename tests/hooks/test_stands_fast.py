"""The hook beside the features of MMEngine's runner, on a real detector."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook as UpstreamHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmyolo_ema import checkpoint
from mmyolo_ema.models.tensor_references import tensor_references
from tests.helpers import ROOT
from tests.hooks.toy import average_of


def trained_run(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, next(hook for hook in runner.hooks if isinstance(hook, UpstreamHook))


def raw_metric(runner):
    return runner.message_hub.get_scalar('val/coco/bbox_mAP_origin').current()


@pytest.fixture
def one_epoch(demo_config):
    """Returns a function that makes a run of the demo's detector with one validation, which detects something."""

    def make(name='run', **options):
        cfg = demo_config(name, **{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2, **options})
        cfg.model.test_cfg.score_thr = 0.0
        return cfg

    return make


def assert_usual(runner, hook, updates=4):
    """Checks what holds after each run: all steps averaged, no NaN, all tensors paired, the file is what it should."""
    assert hook.ema_model.steps == updates
    model, averaged = dict(tensor_references(hook.src_model)), dict(tensor_references(hook.ema_model.module))
    assert model.keys() == averaged.keys()
    assert all(reference.tensor.isfinite().all() for reference in averaged.values())
    assert any(not torch.equal(reference.tensor, averaged[name].tensor) for name, reference in model.items())
    content = checkpoint.read(f'{runner.work_dir}/epoch_2.pth')
    for name, value in content['state_dict'].items():
        assert torch.equal(value, averaged[name].tensor), name
    for name, value in checkpoint.raw_weights(content).items():
        assert torch.equal(value, model[name].tensor), name
    assert isinstance(runner.message_hub.get_scalar('val/coco/bbox_mAP').current(), float)
    assert isinstance(raw_metric(runner), float)


@pytest.mark.slow
def test_average_is_kept_beside_clipped_gradients_and_efficient_conv_bn_eval(one_epoch):
    assert_usual(
        *trained_run(one_epoch(efficient_conv_bn_eval=['backbone'], **{'optim_wrapper.clip_grad': dict(max_norm=35)}))
    )


@pytest.mark.slow
def test_activation_checkpointing_changes_no_average(one_epoch):
    saved = trained_run(one_epoch(activation_checkpointing=['backbone.stage1']))
    assert_usual(*saved)
    saved, plain = (hook.ema_model.state_dict() for _, hook in (saved, trained_run(one_epoch('plain'))))
    # BatchNorm sees each batch twice then, so that its statistics differ in the model too.
    for name in (name for name in plain if 'running_' not in name and 'num_batches' not in name):
        torch.testing.assert_close(plain[name], saved[name], msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('compile', [True, dict(backend='eager')], ids=str)
def test_average_is_kept_of_a_compiled_model(toy, compile):
    torch._dynamo.reset()
    runner = toy(cfg=dict(compile=compile))
    runner.train()
    assert average_of(runner).ema_model.steps == 12
    plain = toy('plain')
    plain.train()
    for name, value in average_of(plain).ema_model.state_dict().items():
        torch.testing.assert_close(value, average_of(runner).ema_model.state_dict()[name], msg=name)


@pytest.mark.slow
def test_average_is_kept_of_a_wrapped_model(one_epoch, process_group, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = one_epoch(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
    cfg.custom_hooks.append(dict(type='SyncBuffersHook'))
    runner = Runner.from_cfg(cfg)
    runner._distributed = True
    runner.model = runner.wrap_model(cfg.model_wrapper_cfg, runner.model)
    assert is_model_wrapper(runner.model)
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, UpstreamHook))
    assert_usual(runner, hook)


@pytest.mark.slow
@pytest.mark.parametrize('first', [True, False], ids=['first', 'last'])
def test_order_in_the_config_does_not_matter(one_epoch, first):
    cfg = one_epoch()
    others = [
        dict(type='SyncNormHook', priority=48),
        dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP_origin', patience=5),
    ]
    cfg.custom_hooks = [*others, *cfg.custom_hooks] if first else [*cfg.custom_hooks, *others]
    assert_usual(*trained_run(cfg))


def test_hook_comes_after_those_of_yolox_and_before_the_checkpoint(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / 'yolox' / 'yolox_s_ema_8xb8-300e_coco.py')
    cfg.work_dir = str(tmp_path)
    order = [type(hook).__name__ for hook in Runner.from_cfg(cfg).hooks]
    places = [order.index(name) for name in ('YOLOXModeSwitchHook', 'SyncNormHook', 'EMAHook', 'CheckpointHook')]
    assert places == sorted(places)
