import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from mmyolo_ema.checkpoint import averaged_weights, read
from mmyolo_ema.checkpoint.difference import is_statistic
from mmyolo_ema.posthoc.batch_norm import reestimate
from tests.helpers import assert_equal

NORM_CFG = 'model.{}.norm_cfg'


@pytest.fixture
def weights(trained):
    return averaged_weights(read(trained))


def copied(weights):
    return {name: value.clone() for name, value in weights.items()}


def changed(new, old):
    return [name for name in old if not torch.equal(new[name], old[name])]


def with_norm(**norm_cfg):
    return {NORM_CFG.format(part): norm_cfg for part in ('backbone', 'neck', 'bbox_head')}


@pytest.mark.slow
@pytest.mark.parametrize('frozen', [False, True])
def test_statistics_are_those_of_a_training_that_learns_nothing(demo_config, weights, tmp_path, frozen):
    options = {'model.backbone.norm_eval': frozen, 'randomness.seed': 3}
    estimated = reestimate(weights, demo_config(**options), batches=2)
    # Such a BatchNorm takes the mean over all batches of a training, whose order is that of the seed too.
    start = {name: torch.zeros_like(value) if 'num_batches' in name else value for name, value in weights.items()}
    torch.save(dict(state_dict=start), tmp_path / 'start.pth')
    runner = Runner.from_cfg(
        demo_config(
            'truth',
            **options,
            **with_norm(type='BN', momentum=None),
            **{
                'load_from': str(tmp_path / 'start.pth'),
                'train_cfg.max_epochs': 1,
                'custom_hooks': [],
                'optim_wrapper.optimizer.lr': 0.0,
            },
        )
    )
    runner.train()
    truth = runner.model.state_dict()
    assert_equal(estimated, {name: truth[name] if is_statistic(name) else value for name, value in weights.items()})
    statistics = [name for name in weights if is_statistic(name)]
    assert changed(estimated, weights) == [name for name in statistics if not (frozen and name.startswith('backbone'))]


def test_statistics_are_means_of_what_layers_are_given(demo_config, weights):
    names, means, variances = {}, {}, {}

    def note(layer, inputs):
        if isinstance(layer, BaseModel):
            names.update({module: name for name, module in layer.named_modules()})
        if isinstance(layer, _BatchNorm):
            by_channel = inputs[0].double().transpose(0, 1).flatten(1)
            means.setdefault(names[layer], []).append(by_channel.mean(1))
            variances.setdefault(names[layer], []).append(by_channel.var(1))

    handle = register_module_forward_pre_hook(note)
    try:
        estimated = reestimate(weights, demo_config(), batches=2)
    finally:
        handle.remove()
    assert len(means) == sum(name.endswith('running_mean') for name in weights)
    for name, batches in means.items():
        assert len(batches) == 2
        wanted = dict(running_mean=sum(batches) / 2, running_var=sum(variances[name]) / 2)
        for kind, value in wanted.items():
            torch.testing.assert_close(estimated[f'{name}.{kind}'].double(), value, rtol=1e-5, atol=1e-5)


def seed(number):
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(number)


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()


def test_same_seed_gives_the_same_and_leaves_no_trace(demo_config, weights):
    cfg = demo_config()
    # The pipeline with random flips.
    cfg.train_dataloader.dataset.pipeline = cfg.train_pipeline
    before, hub, scope = copied(weights), MessageHub.get_instance('run'), DefaultScope.get_current_instance()
    seed(5)
    states = random_states()
    estimated = reestimate(weights, cfg, batches=1)
    assert_equal(random_states(), states)
    assert_equal(dict(weights), before)
    assert (MessageHub.get_current_instance(), DefaultScope.get_current_instance()) == (hub, scope)
    seed(6)
    assert_equal(reestimate(weights, cfg, batches=1), estimated)
    cfg.randomness.seed = 1
    assert changed(reestimate(weights, cfg, batches=1), estimated)


def test_names_of_a_tensor_go_on_sharing_it(demo_config, weights):
    estimated = reestimate(weights, demo_config(), batches=1)
    head = [f'bbox_head.cls_convs.{level}.0' for level in range(3)]
    assert len({estimated[f'{name}.conv.weight'].data_ptr() for name in head}) == 1
    assert len({estimated[f'{name}.bn.running_mean'].data_ptr() for name in head}) == 3


def test_sync_batch_norm_is_estimated_on_the_cpu(demo_config, weights, process_group):
    estimated = reestimate(weights, demo_config(**with_norm(type='SyncBN')), batches=1)
    assert_equal(estimated, reestimate(weights, demo_config(), batches=1))


@pytest.mark.slow
def test_random_sizes_of_batches_are_those_of_a_training(demo_config, weights):
    sizes = dict(type='BatchSyncRandomResize', random_size_range=(64, 64), size_divisor=32, interval=2)
    options = {'train_dataloader.batch_size': 4}
    sized = demo_config(**options, **{'model.data_preprocessor.batch_augments': [sizes]})
    # The size is drawn after the second batch, for the third.
    for batches in (2, 3):
        estimated, usual = (reestimate(weights, cfg, batches) for cfg in (sized, demo_config(**options)))
        assert bool(changed(estimated, usual)) is (batches == 3)


class Small(BaseModel):
    """Layers of each kind: two names of one, without statistics, frozen, not used."""

    def __init__(self, norm=nn.BatchNorm1d, frozen=False, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.norm = norm(1)
        self.parts = nn.ModuleList([self.norm])
        self.unused = norm(1)
        self.stateless = nn.BatchNorm1d(1, track_running_stats=False)
        self.frozen = frozen

    def train(self, mode=True):
        super().train(mode)
        for layer in (self.norm, self.unused) if self.frozen else ():
            layer.eval()
        return self

    def forward(self, inputs, mode):
        return self.stateless(self.norm(inputs))


class Plain(Small):
    """No BatchNorm with statistics."""

    def __init__(self):
        super().__init__(norm=nn.Identity)


def small_config(values, model=Small, **options):
    dataset = [dict(inputs=torch.tensor([value])) for value in values]
    data = dict(
        dataset=dataset,
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    return Config(dict(model=dict(type=model, **options), train_dataloader=data, default_scope='mmengine'))


@pytest.mark.parametrize('norm', [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_layers_of_each_kind(norm):
    weights = {
        name: value + 5 if value.is_floating_point() else value for name, value in Small(norm).state_dict().items()
    }
    # What was wrong before is no matter, and a file may have another precision.
    weights['norm.running_mean'] = torch.tensor([float('nan')], dtype=torch.float16)
    estimated = reestimate(weights, small_config([1.0, 2.0, 3.0, 6.0], norm=norm), batches=2)
    assert list(estimated) == list(weights)
    assert estimated['norm.running_mean'].dtype == torch.float16
    assert {name: estimated[name].item() for name in changed(estimated, weights)} == {
        'norm.running_mean': 3,
        'norm.running_var': 2.5,
        'parts.0.running_mean': 3,
        'parts.0.running_var': 2.5,
    }
    assert estimated['norm.running_mean'] is estimated['parts.0.running_mean']
    assert estimated['unused.running_mean'] is weights['unused.running_mean']


class Halving(BaseDataPreprocessor):
    """Normalises images."""

    def forward(self, data, training=False):
        return dict(inputs=data['inputs'] / 2)


def test_images_are_normalised_as_a_config_says_beside_its_model():
    cfg = small_config([1.0, 2.0, 3.0, 6.0])
    cfg.data_preprocessor = dict(type=Halving)
    estimated = reestimate(Small().state_dict(), cfg, batches=2)
    # Of 0.75 and 2.25, of 0.125 and 1.125.
    assert (estimated['norm.running_mean'], estimated['norm.running_var']) == (1.5, 0.625)
    assert 'data_preprocessor' not in cfg.model


class Noting(Small):
    """Notes what it finds."""

    seen = []

    def forward(self, inputs, mode):
        hub = MessageHub.get_current_instance()
        self.seen.append((hub.get_info('iter'), hub.get_info('epoch'), mode, torch.is_grad_enabled()))
        return super().forward(inputs, mode)


def test_model_finds_what_it_finds_in_a_training(monkeypatch):
    monkeypatch.setattr(Noting, 'seen', [])
    steps = []
    reestimate(
        Noting().state_dict(),
        small_config([1.0, 2.0, 3.0, 6.0], Noting),
        2,
        progress=lambda wrapped: map(lambda step: steps.append(step) or step, wrapped),
    )
    assert Noting.seen == [(0, 0, 'loss', False), (1, 0, 'loss', False)]
    assert steps == [0, 1]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ('values', 'options', 'batches', 'message'),
    [
        ([1.0, 2.0], {}, 0, 'batches=0'),
        ([1.0, 2.0, 3.0, 6.0], {}, 3, '3 batches are asked for, but an epoch of the train_dataloader has 2'),
        ([1.0, 2.0], dict(frozen=True), 1, 'Small has no BatchNorm in training mode, and 3 that are frozen'),
        ([1.0, 2.0], dict(model=Plain), 1, 'Plain has no BatchNorm in training mode, and 0 that are frozen'),
        ([1.0, float('inf')], {}, 1, r'NaN or infinity: norm\.running_mean, norm\.running_var$'),
    ],
)
def test_errors_name_what_is_wrong(values, options, batches, message):
    weights = options.get('model', Small)().state_dict()
    with pytest.raises(ValueError, match=message):
        reestimate(weights, small_config(values, **options), batches)


def test_config_without_data_is_refused(demo_config, weights):
    cfg = demo_config()
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match=r'rtmdet_nuclei\.py defines no train_dataloader'):
        reestimate(weights, cfg, batches=1)


def test_weights_of_another_model_are_refused(demo_config, weights):
    weights.pop('neck.out_convs.0.conv.weight')
    with pytest.raises(ValueError, match=r'another model.*missing: neck\.out_convs\.0\.conv\.weight'):
        reestimate(weights, demo_config(), batches=1)
    with pytest.raises(ValueError, match=r'other names for its BatchNorms than the file: norm\.running_mean'):
        reestimate(
            {f'module.{name}': value for name, value in Small().state_dict().items()},
            small_config([1.0, 2.0]),
            batches=1,
        )
