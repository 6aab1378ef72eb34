import pytest
import torch
from mmengine.config import Config

from mmyolo_ema import checkpoint


@pytest.fixture
def work_dir(tool, config_file, tmp_path):
    """Returns the folder of a run of 8 updates with two checkpoints."""
    cfg = Config.fromfile(config_file)
    cfg.train_cfg.update(max_epochs=4, val_interval=9)
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
    cfg.custom_hooks[0].update(momentum=0.1, gamma=2)
    cfg.dump(config_file)
    tool('train', config_file, '--work-dir', 'run')
    return tmp_path / 'run'


def test_fit_tells_how_well_it_goes(tool, work_dir, capsys):
    capsys.readouterr()
    tool('posthoc_ema', 'fit', work_dir, '--horizon', '5', '2epochs', 'last:50%', '20')
    said = capsys.readouterr().out
    assert '2 checkpoints of updates 4 to 8, 2 in an epoch, Ramp(momentum=0.1, gamma=2, interval=1)' in said
    rows = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
            for line in said.splitlines() if line.startswith('|')}
    assert rows['5'][2] == rows['5'][3], 'the mean age is the wanted one'
    assert float(rows['epoch_4.pth'][1]) != 0


def test_built_file_is_tested_like_any_other(tool, work_dir, config_file, capsys):
    tool('posthoc_ema', 'build', work_dir, '--horizon', '8', '-o', 'out/a.pth')
    assert capsys.readouterr().out.splitlines()[-1].startswith('out/a.pth  8: error ')
    content = torch.load('out/a.pth', weights_only=True)
    told = content['meta']['mmyolo_ema']['posthoc']
    assert told['target'] == '8'
    assert sum(told['coefficients'].values()) == pytest.approx(1)
    assert 0 < told['error'] < 0.5
    tool('test', config_file, 'out/a.pth')
    assert 'out/a.pth holds no EMA: its only weights are tested' in capsys.readouterr().out


def test_horizon_of_the_run_gives_its_average(tool, work_dir, assert_equal):
    tool('posthoc_ema', 'build', work_dir, '--horizon', '10', '-o', 'a.pth')
    built, kept = (checkpoint.read(path)['state_dict'] for path in ('a.pth', work_dir / 'epoch_4.pth'))
    assert_equal(dict(built), dict(kept))


@pytest.mark.parametrize(('arguments', 'said'), [
    (['fit', 'nowhere'], 'there is no folder nowhere'),
    (['fit', '.'], 'has no checkpoints with an average'),
    (['fit', 'run', '--horizon', 'old'], 'a length of training is written as'),
    (['build', 'run', '-o', 'a.pth'], 'the following arguments are required: --horizon'),
    (['build', 'run', '--horizon', '8', '-o', 'a.safetensors'], '-o must name a .pth file, but got a.safetensors'),
    (['build', 'run', '--horizon', '8', '-o', 'small.py'], '-o must name a .pth file, but got small.py'),
    (['build', 'run', '--horizon', 'last:2', '-o', 'a.pth'], 'the average last:2 cannot be made of these checkpoints'),
    (['build', 'run', '--horizon', '8', '-o', 'run/epoch_2.pth'], 'run/epoch_2.pth exists: name another file for -o'),
])
def test_bad_input_gets_one_line(refused, work_dir, capsys, arguments, said):
    capsys.readouterr()
    assert said in refused('posthoc_ema', *arguments)
