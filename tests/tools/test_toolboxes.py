"""Configs in the form of other toolboxes', with toys for what is theirs."""

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import Dataset

from mmyolo_ema import checkpoint


@MODELS.register_module(force=True)
class ToyNormalization(BaseDataPreprocessor):
    """Stands beside the model in a config, as in MMPreTrain's."""

    def forward(self, data, training=False):
        return dict(inputs=torch.stack(data['inputs']) / 255)


@MODELS.register_module(force=True)
class ToySegmenter(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, inputs, mode='tensor'):
        output = self.norm(self.conv(inputs)).mean((1, 2, 3))
        return dict(loss=output.square().mean() + self.conv.weight.sum()) if mode == 'loss' else list(output)


@DATASETS.register_module(force=True)
class ToyImages(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=255 * torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(index)))


@METRICS.register_module(force=True)
class ToyIoU(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(sample.item() for sample in data_samples)

    def compute_metrics(self, results):
        return dict(aAcc=50.0, mIoU=100 * sum(results) / len(results))


class Drawing(Hook):
    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.is_on and self.every_n_inner_iters(batch_idx, self.interval):
            image = (data_batch['inputs'][0].permute(1, 2, 0)).byte().numpy()
            Visualizer.get_current_instance().add_image(f'test_{batch_idx}', image)


@HOOKS.register_module(force=True)
class ToySegDrawing(Drawing):
    """Draws by the visualizer, as MMSegmentation's hook."""

    def __init__(self, draw=False, interval=50, show=False, wait_time=0.0):
        self.is_on, self.interval = draw, interval


@HOOKS.register_module(force=True)
class ToyClsDrawing(Drawing):
    """Draws into a folder, as MMPreTrain's hook."""

    def __init__(self, enable=False, interval=5000, show=False, out_dir=None, **kwargs):
        self.is_on, self.interval, self.out_dir = enable, interval, out_dir

    def before_run(self, runner):
        if self.out_dir:
            Visualizer.get_current_instance()._vis_backends['LocalVisBackend']._img_save_dir = self.out_dir


def loader(sampler, batch_size=2):
    return dict(batch_size=batch_size, num_workers=0, dataset=dict(type='ToyImages'), sampler=sampler)


def toolbox_config(drawing):
    evaluated = loader(dict(type='DefaultSampler', shuffle=False))
    return dict(
        default_scope='mmengine',
        model=dict(type='ToySegmenter'),
        data_preprocessor=dict(type='ToyNormalization'),
        train_dataloader=loader(dict(type='InfiniteSampler', shuffle=True)),
        val_dataloader=evaluated,
        test_dataloader=evaluated,
        val_evaluator=dict(type='ToyIoU'),
        test_evaluator=dict(type='ToyIoU'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=12, val_interval=6),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, save_best='mIoU'),
            visualization=dict(type=drawing),
        ),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.2, gamma=2)],
        randomness=dict(seed=0),
    )


@pytest.fixture
def config(tmp_path):
    """Returns a function that writes the config of a toolbox."""

    def write(drawing='ToySegDrawing'):
        Config(toolbox_config(drawing)).dump(tmp_path / 'toolbox.py')
        return 'toolbox.py'

    return write


def test_run_of_another_toolbox(tool, refused, config, tmp_path, capsys):
    tool('train', config(), '--work-dir', 'run')
    file = 'run/iter_12.pth'
    for drawing in ('ToySegDrawing', 'ToyClsDrawing'):
        tool('test', config(drawing), file, '--show-dir', f'shown_{drawing}', '--work-dir', 'tested')
        assert len(list((tmp_path / f'shown_{drawing}').rglob('*.png'))) == 4
    capsys.readouterr()
    assert 'no tta_model and no tta_pipeline, and its default_scope is mmengine' in refused(
        'test', config(), file, '--tta'
    )
    tool('posthoc_ema', 'build', 'run', '--horizon', '5', '-o', 'new.pth', '--config', config(), '--bn-batches', '4')
    averaged, new = (checkpoint.read(path)['state_dict']['norm.running_var'] for path in (file, 'new.pth'))
    # Of images from 0 to 1, as those of the training; it would be 65,025 times that.
    assert (new < 1).all()
    assert (new > 0.01 * averaged).all()
    capsys.readouterr()
    tool('posthoc_ema', 'sweep', 'run', config(), '--horizons', '4', '8')
    said = capsys.readouterr().out
    assert "will not be told: that is for COCO's mAP only, and the evaluator is ToyIoU" in said
    assert said.count('mAP') == 2  # as what this is not
    assert " mIoU | to the run's EMA |" in said
