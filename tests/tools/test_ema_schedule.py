import re
import subprocess
import sys

import pytest
from mmengine.config import Config

from mmyolo_ema.schedules import Ramp, mean_age
from tests.helpers import ROOT


@pytest.fixture
def config():
    return ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py'


def rows(said, first):
    """Returns the numbers in the rows of the first table whose title begins so."""
    lines = said[said.index(first) :].splitlines()[4:]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[: lines.index('')]]


def test_report_of_a_config_counts_its_run(tool, config, capsys):
    tool('ema_schedule', config, '--all')
    said = capsys.readouterr().out
    assert f'{config}: 480 updates of the average, 20 in an epoch\n' in said
    assert '    24 epochs x 20 iterations: 160 images, 8 in a batch\n' in said
    table = rows(said, 'config: ramp momentum=0.0495, gamma=39.9\n\n')
    assert [row[0] for row in table] == ['5', '24', '48', '120', '240', '360', '480']
    assert table[-1] == ['480', '24', '0.0495', '20.2', '19.2', '0.96', '4.00%', '39.4', '0.0%']
    assert 'after 480 updates, the end, the average holds about 39 of them: its mean age is between 1% and 20% ' in said
    recipes = {row[0]: row[1:] for row in rows(said, 'At the end, beside the recipes')}
    assert recipes['RTMDet'] == ['138,618', '5,000', '10.8', '3.61%', '3.61%']
    assert recipes['this run, config'][:3] == ['480', '20.2', '1.01']


def test_answer_and_line_to_paste_come_first(tool, config, capsys):
    tool('ema_schedule', config, '--mean-age', '2epochs')
    said = capsys.readouterr().out
    answer, line, table = (said.index(part) for part in ('after 480 updates, the end', 'dict(type=', '| updates |'))
    assert answer < line < table
    assert '| updates | mean age | share |' in said
    assert 'COCO' not in said


def test_defaults_in_a_short_run_are_the_raw_weights(tool, capsys):
    tool('ema_schedule', '--momentum', '0.0001', '0.01', '--gamma', '2000', '100', '--iters', '2001')
    said = capsys.readouterr().out
    assert 'after 2,001 updates, the end, the average holds about 4 of them: practically the raw weights\n' in said
    assert 'momentum=0.0001 and gamma=2000 do not suit this run of 2,001 updates' in said
    assert 'momentum=0.0123 and gamma=114 would make them 4% of the run old' in said
    assert rows(said, 'setting 1: ramp momentum=0.0001, gamma=2000\n\n')[-1][1] == f'{mean_age(2001, 0.0001, 2000):.3g}'
    assert rows(said, 'setting 2: ramp momentum=0.01, gamma=100\n\n')[-1][1] == f'{mean_age(2001, 0.01, 100):.3g}'


def test_suggestion_for_a_mean_age_is_that_old(tool, config, capsys):
    tool('ema_schedule', config, '--mean-age', '2epochs')
    said = capsys.readouterr().out
    assert rows(said, 'suggestion for a mean age of 40 updates (2epochs)')[-1] == ['480', '40', '8.33%']
    options = re.search(r'--cfg-options (.*)', said)[1]
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(option.split('=') for option in options.split()))
    hook = re.search(r'    (dict\(.*\))', said)[1]
    # The line for the config and the options say the same.
    assert {key: str(value) for key, value in eval(hook).items()} == {
        key: str(value) for key, value in cfg.custom_hooks[0].items()
    }


def test_suggestion_for_another_batch_size_averages_as_many_images(tool, config_file, capsys):
    tool('ema_schedule', config_file, '--gpus', '2', '--scale-from-batch', '8')
    said = capsys.readouterr().out
    assert 'For 16 images in an update instead of 8:' in said
    # 1 - 0.95 ** 2
    assert 'custom_hooks.0.momentum=0.0975 custom_hooks.0.gamma=20' in said


def test_config_without_average_gets_a_first_one(tool, config, capsys):
    tool('ema_schedule', config, '--cfg-options', 'custom_hooks=[]', '--mean-age', '4%')
    said = capsys.readouterr().out
    assert "dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.0495, gamma=39.9)" in said
    assert '--cfg-options' not in said
    assert 'config: ' not in said


def test_classes_in_a_config_are_named_as_their_registry_knows_them(tool, config, capsys, tmp_path):
    pure = tmp_path / 'pure.py'
    pure.write_text("""
from mmengine.config import read_base

from mmyolo_ema import EMAHook, ExpMomentumEMA

with read_base():
    from .base import *  # noqa: F403

custom_hooks = [dict(type=EMAHook, ema_type=ExpMomentumEMA, momentum=0.05, gamma=40)]
""")
    (tmp_path / 'base.py').write_text('train_cfg = dict(max_epochs=24)\ntrain_dataloader = dict(batch_size=8)\n')
    tool('ema_schedule', pure, '--mean-age', '10%', '--dataset-size', '160')
    hook = eval(re.search(r'    (dict\(.*\))', capsys.readouterr().out)[1])
    assert (hook['type'], hook['ema_type']) == ('mmyolo_ema.EMAHook', 'mmyolo_ema.ExpMomentumEMA')


@pytest.mark.slow
@pytest.mark.any_family
def test_narrow_terminal_gets_whole_numbers():
    command = f'COLUMNS=60 {sys.executable} {ROOT}/tools/ema_schedule.py --all --momentum 0.0002 --iters 277235'
    said = subprocess.run(['script', '-qec', command, '/dev/null'], capture_output=True, text=True).stdout
    assert '…' not in said
    assert '| 277,235 |' in said


@pytest.mark.slow
@pytest.mark.any_family
@pytest.mark.parametrize('redirection', ['>&-', '>/dev/full'])
def test_output_that_cannot_be_written_gets_no_traceback(redirection):
    command = f'{sys.executable} {ROOT}/tools/ema_schedule.py --momentum 0.1 --iters 100 {redirection}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert 'Traceback' not in done.stderr


def test_settings_beside_a_config_differ_in_what_is_given_only(tool, config_file, capsys):
    tool('ema_schedule', config_file, '--momentum', '0.02', '0.03', '--cfg-options', 'custom_hooks.0.interval=2')
    said = capsys.readouterr().out
    assert 'setting 2: ramp momentum=0.03, gamma=40, interval=2\n' in said


def test_further_averages_of_a_config_are_described_beside_the_main_one(tool, config_file, capsys):
    tool('ema_schedule', config_file, '--cfg-options', 'custom_hooks.0.averages.short.momentum=0.5')
    said = capsys.readouterr().out
    assert said.index('config: ramp momentum') < said.index('short: ramp momentum=0.5, gamma=2000\n')


def test_settings_are_drawn_side_by_side(tool, config, figures, tmp_path, capsys):
    tool('ema_schedule', config, '--momentum', '0.0002', '--plot', 'new/schedule.png')
    assert (tmp_path / 'new' / 'schedule.png').exists()
    momentum, weight = figures[0].axes
    assert [axis.get_ylabel() for axis in (momentum, weight)] == ['momentum', 'weight in the final average']
    assert len(momentum.lines) == len(weight.lines) == 2
    step, value = (values[-1] for values in momentum.lines[1].get_data())
    assert value == pytest.approx(Ramp(0.0002, 39.9).momentum_at(step), rel=1e-3)
    assert capsys.readouterr().out.endswith('new/schedule.png  the picture\n')


@pytest.mark.slow
@pytest.mark.any_family
def test_terminal_gets_tables_with_lines(config):
    command = f'COLUMNS=200 {sys.executable} {ROOT}/tools/ema_schedule.py {config}'
    said = subprocess.run(['script', '-qec', command, '/dev/null'], capture_output=True, text=True).stdout
    assert '┃' in said


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], 'name a config, or pass --momentum and --iters'),
        (['--momentum', '0.1'], 'name a config, or pass --momentum and --iters'),
        (['nowhere.py'], 'there is no config nowhere.py'),
        (['--momentum', '1.5', '--iters', '100'], 'argument --momentum: must be above 0 and below 1, but got 1.5'),
        (['--momentum', 'x', '--iters', '100'], "argument --momentum: invalid fraction value: 'x'"),
        (['--momentum', '0.1', '--gamma', '0', '--iters', '100'], 'argument --gamma: must be above 0, but got 0'),
        (['small.py', '--gamma', '1'], '--gamma goes with --momentum'),
        (['small.py', '--cfg-options', 'custom_hooks.0.gama=25'], 'EMAHook has no option gama (did you mean gamma?)'),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.ema_type=ExponentialMovingAverage'],
            "EMAHook has no option gamma (ema_type='mmyolo_ema.ExpMomentumEMA' has it): it takes ema_type, "
            'strict_load, begin_iter, begin_epoch, evaluate_on_ema, evaluate_on_origin, skip_nonfinite, mean_age, '
            'averages, evaluate, and its average ExponentialMovingAverage takes momentum, interval, device,',
        ),
        (['small.py', '--cfg-options', 'train_cfg.max_epochs=100000000'], 'updates are more than 20,000,000'),
        (['small.py', '--mean-age', ''], '--mean-age: a length of training is written as'),
        (['small.py', '--mean-age', '0.04'], "--mean-age: '0.04' is less than one update"),
        (
            ['--momentum', '0.1', '--gamma', '1', '2', '--iters', '100'],
            '--gamma takes one number, or one for each of 1',
        ),
        (['--momentum', '0.1', '--iters', '0'], 'argument --iters: must be 1 to 20000000, but got 0'),
        (['--momentum', '0.1', '--iters', '9', '--mean-age', '2epochs'], "'2epochs' needs the number of updates"),
        (['--momentum', '0.1', '--iters', '9', '--mean-age', '200%'], '--mean-age: no momentum makes the average 18'),
        (['--momentum', '0.1', '--iters', '9', '--scale-from-batch', '8'], '--scale-from-batch needs a config'),
        (['small.py', '--mean-age', 'old'], "--mean-age: a length of training is written as '500' (updates)"),
        (['small.py', '--plot', 'a.docx'], '--plot must name a picture such as F.png, but got a.docx'),
        (['small.py', '--plot', 'small.py'], '--plot must name a picture such as F.png, but got small.py'),
        (['small.py', '--cfg-options', 'custom_hooks=[]'], 'small.py has no EMAHook in custom_hooks: pass --mean-age'),
        (['small.py', '--cfg-options', 'custom_hooks.0.momentum=2'], 'above 0 and below 1, but got 2'),
        (
            ['small.py', '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'],
            'training set cannot be read (File',
        ),
        (
            ['small.py', '--scale-from-batch', '1', '--cfg-options', 'train_dataloader.batch_size=99'],
            'would be above 0.99',
        ),
    ],
)
def test_bad_input_gets_one_line(refused, config_file, arguments, said):
    assert said in refused('ema_schedule', *arguments)


def test_average_without_momentum_has_none_to_look_at(refused, config_file):
    cfg = Config.fromfile(config_file)
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='StochasticWeightAverage')]
    cfg.dump(config_file)
    said = refused('ema_schedule', config_file, '--momentum', '0.1')
    assert said.endswith("small.py, uniform, doesn't have that")


def test_picture_that_is_there_is_left(refused, config_file, tmp_path):
    (tmp_path / 'a.png').write_text('mine')
    assert 'a.png exists: name another file' in refused('ema_schedule', config_file, '--plot', 'a.png')
    assert (tmp_path / 'a.png').read_text() == 'mine'
