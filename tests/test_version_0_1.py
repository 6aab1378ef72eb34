"""What version 0.1 stored goes on: two checkpoints and three snapshots of a run of the toy model, 18 updates in all."""

import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmyolo_ema import checkpoint
from mmyolo_ema.posthoc import read_run
from mmyolo_ema.posthoc.sweep import sweep
from mmyolo_ema.schedules import Ramp, figures
from tests.helpers import assert_equal
from tests.hooks.toy import Bias, toy_hook

STORED = Path(__file__).parent / 'data' / 'version_0_1'
HOOKS = [
    toy_hook(),
    dict(type='mmyolo_ema.SnapshotHook', interval='1epoch', second_horizon=4),
]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / 'run'))


def test_files_are_understood(folder):
    found = checkpoint.inspect(folder / 'epoch_3.pth')
    assert (found.average.updates, found.average.hook['momentum']) == (18, 0.1)
    assert found.average.mean_age == pytest.approx(7.1, abs=0.01)
    run = read_run(folder)
    assert (run.updates, run.schedule, run.second) == (18, Ramp(0.1, 2), Ramp(0.25, 2))
    assert [(file.path.name, kind) for file, kind in run.sources] == [
        ('update_00000006.pth', 'ema'),
        ('epoch_2.pth', 'ema'),
        ('epoch_3.pth', 'ema'),
        ('epoch_2.pth', 'raw'),
        ('epoch_3.pth', 'raw'),
        ('update_00000006.pth', 'second'),
        ('epoch_2.pth', 'second'),
        ('epoch_3.pth', 'second'),
    ]


def test_other_averages_are_made_of_them(folder, tmp_path):
    own = read_run(folder).average(10)
    assert own.error < 1e-6
    own.write(tmp_path / 'own.pth')
    made, stored = (checkpoint.read(path)['state_dict'] for path in (tmp_path / 'own.pth', folder / 'epoch_3.pth'))
    assert_equal(dict(made), dict(stored))


def test_second_average_goes_on_being_read(folder, tmp_path):
    content = checkpoint.read(folder / 'epoch_3.pth')
    stored = {
        name.removeprefix('module.'): value
        for name, value in content['second_ema_state_dict'].items()
        if name != 'steps'
    }
    rows = {weights.kind: weights for weights in checkpoint.inspect(folder / 'epoch_3.pth').weights}
    assert (rows['second'].key, rows['second'].updates) == ('second_ema_state_dict', 18)
    assert rows['second'].mean_age == pytest.approx(figures(Ramp(0.25, 2), [18])[0].mean_age)
    run = read_run(folder)
    second = run.average(4)
    assert second.coefficients == {'epoch_3.pth second': 1}
    second.write(tmp_path / 'second.pth')
    checkpoint.extract(folder / 'epoch_3.pth', tmp_path / 'extracted.pth', 'second')
    for name in ('second', 'extracted'):
        assert_equal(dict(checkpoint.read(tmp_path / f'{name}.pth')['state_dict']), stored)
    measured = sweep(run, Bias(), [4], tmp_path / 'sweep.json').candidates['4'].metrics
    assert measured == dict(bias=float(stored['out.bias']))


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.out = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.out(self.norm(self.linear(torch.stack(inputs))))
        return dict(loss=output.square().mean() + output.mean()) if mode == 'loss' else list(output)


class Numbers(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return dict(inputs=torch.full((3,), index / 24))


@pytest.mark.parametrize('wish', [False, True])
def test_run_goes_on(folder, wish):
    hooks = [dict(HOOKS[0]), HOOKS[1]]
    if wish:
        del hooks[0]['momentum'], hooks[0]['gamma'], hooks[0]['ema_type']
        hooks[0]['mean_age'] = '10%'
    loader = dict(dataset=Numbers(), batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    runner = Runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=dict(type='ExponentialLR', gamma=0.9),
        custom_hooks=hooks,
        cfg=Config(dict(custom_hooks=hooks)),
        default_scope='mmengine',
        log_level='WARNING',
        resume=True,
        load_from=str(folder / 'epoch_3.pth'),
        randomness=dict(seed=0),
    )
    runner.train()
    run = read_run(folder)
    assert (run.updates, run.schedule, run.second) == (24, Ramp(0.1, 2), Ramp(0.25, 2))
    assert (folder / 'snapshots' / 'update_00000024.pth').exists()
