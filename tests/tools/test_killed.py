"""A training that is killed again and again comes to the same end."""

import subprocess
import sys

import pytest

from mmyolo_ema import checkpoint
from tests.helpers import ROOT, assert_equal

# Imports once, then forks a training for each attempt: kills it at a random moment, or while it writes a checkpoint.
PROGRAM = """
import os, random, runpy, shutil, signal, sys, time
from pathlib import Path
import mmdet.models, mmdet.datasets, mmdet.evaluation, mmdet.visualization, mmdet.engine, mmyolo_ema

tool, config, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, str(Path(tool).parent))
moments = random.Random(0)

def train():
    child = os.fork()
    if child == 0:
        sys.argv = ['train.py', config, '--work-dir', 'killed', '--resume']
        runpy.run_path(tool, run_name='__main__')
        os._exit(0)
    return child

def unfinished():
    return list(Path('killed').glob('.unfinished.*.pth'))

killed = within_save = 0
for attempt in range(kills):
    for path in unfinished():
        shutil.rmtree(path)
    child = train()
    in_save = attempt % 2
    end = time.time() + (60 if in_save else moments.uniform(0.5, 6))
    while time.time() < end and not (in_save and unfinished()) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    except ProcessLookupError:  # it came to its end before
        pass
    within_save += bool(unfinished())
assert within_save > 0, 'no save was interrupted'
Path('kills.txt').write_text(f'{killed} killed, {within_save} of them within a save')
assert os.waitpid(train(), 0)[1] == 0
"""


@pytest.mark.slow
def test_killed_and_resumed_training_equals_the_uninterrupted_one(demo_config, tool, tmp_path):
    options = {'train_cfg.max_epochs': 16, 'train_cfg.val_interval': 4, 'default_hooks.checkpoint.interval': 1}
    cfg = demo_config(**options)
    cfg.dump(tmp_path / 'config.py')
    tool('train', 'config.py', '--work-dir', 'whole')
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(ROOT / 'tools' / 'train.py'), 'config.py', '10'],
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    print((tmp_path / 'kills.txt').read_text())
    whole, killed = (checkpoint.read(tmp_path / name / 'epoch_16.pth') for name in ('whole', 'killed'))
    assert killed['ema_state_dict']['steps'] == 32
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(whole[part], killed[part], part)
