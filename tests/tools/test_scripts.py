"""The shell scripts start the tools in several processes."""

import os
import socket
import subprocess
import sys

import pytest
from mmengine.fileio import load

from mmyolo_ema import checkpoint
from tests.helpers import ROOT


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


@pytest.fixture
def script(tmp_path):
    """Returns a function that runs a script in an empty folder."""

    def run(name, *arguments, check=True, **environment):
        ours = dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT=free_port())
        done = subprocess.run(
            [ROOT / 'tools' / name, *map(str, arguments)],
            cwd=tmp_path,
            text=True,
            env={**os.environ, **ours, **environment},
            capture_output=True,
        )
        assert done.returncode == 0 or not check, done.stderr[-3000:]
        return done

    return run


@pytest.mark.slow
def test_two_processes_train_and_test(script, config_file, tmp_path):
    script('dist_train.sh', config_file, 2, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=2')
    saved = tmp_path / 'run' / 'epoch_2.pth'
    content = checkpoint.read(saved)
    assert content['ema_state_dict']['steps'] == 2  # 2 epochs of 16 images in 2 processes, 8 at a time
    script('dist_test.sh', config_file, saved, 2, '--weights', 'raw', '--out', 'two.pkl', '--work-dir', 'test')
    # MMEngine lets each process write this file, one over the other, so that its end may be torn.
    assert next((tmp_path / 'test').glob('*/*.json')).read_text().startswith('{"coco/bbox_mAP":')
    assert len(load(tmp_path / 'two.pkl')) == 8


@pytest.mark.parametrize(
    ('name', 'positional', 'started'),
    [
        (
            'slurm_train.sh',
            ['gpu', 'job', 'my config.py', 'work dir'],
            ['train.py', 'my config.py', '--work-dir', 'work dir', '--launcher', 'slurm', '--cfg-options', 'a=[1, 2]'],
        ),
        (
            'slurm_test.sh',
            ['gpu', 'job', 'my config.py', 'epoch 1.pth'],
            ['test.py', 'my config.py', 'epoch 1.pth', '--launcher', 'slurm', '--cfg-options', 'a=[1, 2]'],
        ),
    ],
)
def test_slurm_starts_the_tool_with_its_arguments(script, tmp_path, name, positional, started):
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nfor argument; do printf "%s\\n" "$argument"; done\n')
    srun.chmod(0o755)
    done = script(
        name,
        *positional,
        '--cfg-options',
        'a=[1, 2]',
        GPUS='16',
        SRUN_ARGS='--time 5 --qos=high',
        PATH=f'{srun.parent}:{os.environ["PATH"]}',
    )
    words = done.stdout.splitlines()
    command = words.index(sys.executable)
    assert words[:command] == [
        '-p',
        'gpu',
        '--job-name=job',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--time',
        '5',
        '--qos=high',
    ]
    assert words[command + 1] == '-u'
    assert words[command + 2].endswith(f'tools/{started[0]}')
    assert words[command + 3 :] == started[1:]


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_too_few_arguments_get_one_line(script, name):
    done = script(name, 'config.py', check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: usage: tools/{name} ')
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'arguments', [['dist_train.sh', 'config.py', '--amp'], ['dist_test.sh', 'config.py', 'epoch_1.pth', '--tta']]
)
def test_forgotten_number_of_processes_gets_one_line(script, arguments):
    done = script(*arguments, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: usage: tools/{arguments[0]} CONFIG ')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('error', 'status', 'said'),
    [
        ('KeyboardInterrupt()', 130, 'interrupted\n'),
        ("OSError(28, 'No space left on device')", 2, 'error: [Errno 28] No space left on device\n'),
    ],
)
def test_training_that_is_stopped_ends_in_one_line(config_file, tmp_path, error, status, said):
    (tmp_path / 'stopping.py').write_text(f"""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Stop(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        raise {error}
""")
    (tmp_path / 'stopped.py').write_text("""
_base_ = 'small.py'
custom_imports = dict(imports='stopping')
custom_hooks = [*_base_.custom_hooks, dict(type='mmengine.Stop')]
""")
    path = f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', 'stopped.py'],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=dict(os.environ, PYTHONPATH=path),
    )
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert 'Traceback' not in done.stderr
