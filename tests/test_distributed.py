"""Two processes keep the same average."""

import os
import subprocess
import sys

import pytest
import torch

# Each process trains on its own half of the images, and stores its average.
PROGRAM = """
import sys
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmyolo_ema.command_line import build_runner
runner = build_runner(Config.fromfile(sys.argv[1]), local_rank=0)
runner.train()
hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
torch.save(hook.ema_model.state_dict(), f'average_{torch.distributed.get_rank()}.pth')
"""


@pytest.mark.slow
@pytest.mark.parametrize('update_buffers', [True, False])
def test_two_processes_keep_identical_averages(demo_config, tmp_path, update_buffers):
    cfg = demo_config(**{'custom_hooks.0.update_buffers': update_buffers, 'launcher': 'pytorch'})
    cfg.dump(tmp_path / 'config.py')
    (tmp_path / 'program.py').write_text(PROGRAM)
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', 'program.py',
                    'config.py'], cwd=tmp_path, check=True, env=dict(os.environ, OMP_NUM_THREADS='1'),
                   capture_output=True)
    first, second = (torch.load(tmp_path / f'average_{rank}.pth') for rank in (0, 1))
    assert first['steps'] == second['steps'] == 4
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    # BatchNorm without synchronisation sees other images in each process: its statistics differ in the models too.
    assert all('running_' in name for name in differing), differing
    assert len(differing) > 0
