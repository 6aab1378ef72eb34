import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmyolo_ema import checkpoint
from tests.helpers import ROOT


class Harmful:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('harm',)


def test_inspection_tells_what_a_file_holds(tool, checkpoint_file, capsys):
    assert tool('ema_checkpoint', 'inspect', checkpoint_file) == 0
    said = capsys.readouterr().out
    assert 'epoch_9.pth: epoch 4, iteration 8, MMEngine' in said
    assert 'average of 8 updates' in said
    assert 'momentum=0.05' in said
    assert '| averaged (ema) | state_dict     |' in said
    assert 'average and raw weights: 0.' in said
    assert 'one tensor under 3 names: bbox_head.cls_convs.0.0.conv.weight' in said


def test_inspection_as_json_can_be_read(tool, checkpoint_file, capsys):
    content = checkpoint.read(checkpoint_file)
    content['state_dict']['backbone.stem.0.conv.weight'][0] = float('nan')
    torch.save(content, 'nan.pth')
    assert tool('ema_checkpoint', 'inspect', '--json', checkpoint_file, 'nan.pth') == 0

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    complete, broken = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert complete['average']['updates'] == 8
    assert complete['average']['hook']['gamma'] == 40
    assert complete['distance']['relative'] > 0
    assert broken['distance']['relative'] is None
    assert broken['weights'][0]['nonfinite'] == ['backbone.stem.0.conv.weight']


def test_odd_names_and_values_are_shown_as_they_are(tool, capsys, tmp_path):
    weights = {'[red].weight': torch.ones(2), '[/x].weight': torch.ones(2)}
    stored = {f'module.{name}': value + 1 for name, value in weights.items()}
    meta = dict(cfg="custom_hooks = [dict(type='EMAHook', momentum=1e999, a={(1, 2): 3})]")
    torch.save(dict(meta=meta, state_dict=weights, ema_state_dict=dict(stored, steps=3)), tmp_path / '[red].pth')
    assert tool('ema_checkpoint', 'inspect', '[red].pth') == 0
    said = capsys.readouterr().out
    assert '| [red] | ' in said
    assert '| [/x]  | ' in said
    assert tool('ema_checkpoint', 'inspect', '--json', '[red].pth') == 0
    assert json.loads(capsys.readouterr().out)[0]['average']['hook']['momentum'] == 'inf'


def test_names_in_a_file_cannot_steer_the_terminal(tool, refused, capsys, tmp_path):
    name = 'a\x1b[2J\nequal\u202e\udc80.weight'
    for file, value in (('a.pth', 1.0), ('b.pth', float('nan'))):
        torch.save(dict(state_dict={name: torch.full((2,), value), f'{name}2': torch.ones(1)}), file)
    for command in (['compare', 'a.pth', 'b.pth'], ['inspect', 'a.pth'], ['extract', 'a.pth', '-o', 'c.pth']):
        said = refused('ema_checkpoint', *command)
        assert said.isprintable()
        assert 'a.pth is refused' in said
        assert "a name with what a terminal would obey: 'a\\x1b[2J\\nequal\\u202e\\udc80.weight'" in said


def test_count_of_batches_that_is_complex_counts_nothing(tool):
    name = 'bn.num_batches_tracked'
    torch.save(dict(state_dict={name: torch.tensor(1j)}, ema_state_dict={f'module.{name}': torch.tensor(2j)}), 'a.pth')
    assert tool('ema_checkpoint', 'inspect', 'a.pth') == 0


def test_what_is_broken_is_said_when_it_is_handed_on(tool, capsys):
    torch.save(dict(state_dict=dict(a=torch.tensor([float('nan')]))), 'nan.pth')
    tool('ema_checkpoint', 'publish', 'nan.pth', '-o', 'a')
    assert 'warning: NaN or infinity in the weights: a\n' in capsys.readouterr().out


def test_a_broken_file_does_not_hide_the_others(tool, checkpoint_file, capsys):
    assert tool('ema_checkpoint', 'inspect', 'nowhere.pth', checkpoint_file) == 2
    said = capsys.readouterr()
    assert said.err == 'error: there is no checkpoint nowhere.pth\n'
    assert 'average of 8 updates' in said.out


@pytest.mark.slow
def test_extracted_raw_weights_are_those_that_the_test_takes(tool, config_file, checkpoint_file, capsys):
    tool('ema_checkpoint', 'extract', checkpoint_file, '--weights', 'raw', '-o', 'out/raw.pth')
    assert capsys.readouterr().out.startswith('out/raw.pth  ')
    tool('test', config_file, checkpoint_file, '--weights', 'raw', '--work-dir', 'raw')
    tool('test', config_file, 'out/raw.pth', '--work-dir', 'extracted')
    raw, extracted = (
        json.loads(next(folder.glob('*/*.json')).read_text())
        for folder in map(checkpoint_file.parent.joinpath, ('raw', 'extracted'))
    )
    assert raw['coco/bbox_mAP'] == extracted['coco/bbox_mAP']


def test_publishing_tells_name_and_error(tool, checkpoint_file, capsys, tmp_path):
    tool('ema_checkpoint', 'publish', checkpoint_file, '-o', 'rtmdet', '--dtype', 'float16')
    said = capsys.readouterr().out
    name = next(tmp_path.glob('rtmdet-*.pth')).name
    assert said.startswith('largest relative error by float16: 0.000')
    assert f'{name}  1.' in said


def test_file_without_average_is_exported_and_said_so(tool, checkpoint_file, capsys):
    content = checkpoint.read(checkpoint_file)
    torch.save(dict(state_dict=content['state_dict']), 'plain.pth')
    tool('ema_checkpoint', 'extract', 'plain.pth', '-o', 'a.pth')
    assert 'plain.pth holds one set of weights only, without saying which: it is taken' in capsys.readouterr().out


def test_folder_means_its_checkpoints(tool, checkpoint_file, capsys):
    tool('ema_checkpoint', 'extract', checkpoint_file, '-o', 'run/a.pth')
    tool('ema_checkpoint', 'extract', checkpoint_file, '--weights', 'raw', '-o', 'run/b.pth')
    capsys.readouterr()
    assert tool('ema_checkpoint', 'inspect', 'run', '--json') == 0
    assert [inspection['file'] for inspection in json.loads(capsys.readouterr().out)] == ['run/a.pth', 'run/b.pth']


def test_comparison_tells_by_its_status(tool, checkpoint_file, capsys):
    tool('ema_checkpoint', 'extract', checkpoint_file, '--weights', 'raw', '-o', 'raw.pth')
    assert tool('ema_checkpoint', 'compare', checkpoint_file, 'raw.pth', '--weights', 'raw') == 0
    assert '\nequal\n' in capsys.readouterr().out
    assert tool('ema_checkpoint', 'compare', checkpoint_file, 'raw.pth') == 1
    said = capsys.readouterr().out
    assert 'epoch_9.pth (ema), raw.pth (raw)' in said
    assert '\nnot equal\n' in said


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], 'the following arguments are required: COMMAND'),
        (['publish'], 'the following arguments are required: FILE, -o/--out (see ema_checkpoint.py publish --help)'),
        (['inspect', 'cut.pth'], 'cut.pth is not a checkpoint, or is truncated'),
        (['inspect', 'text.pth'], 'text.pth is not a checkpoint: it is text'),
        (['inspect', 'empty.pth'], 'empty.pth is not a checkpoint: it is empty'),
        (['inspect', 'folder'], 'folder is a folder: name a checkpoint in it'),
        (['inspect', 'harmful.pth'], 'harmful.pth is refused, and nothing in it was run: it holds posix.mkdir'),
        (['extract', 'harmful.pth', '-o', 'a.pth'], 'harmful.pth is refused, and nothing in it was run'),
        (['publish', 'harmful.pth', '-o', 'a'], 'harmful.pth is refused, and nothing in it was run'),
        (['compare', 'epoch_9.pth', 'harmful.pth'], 'harmful.pth is refused, and nothing in it was run'),
        (['extract', 'epoch_9.pth', '-o', 'cut.pth'], 'cut.pth exists: name another file for -o, or remove it'),
        (['extract', 'epoch_9.pth', '-o', 'a.onnx'], 'must end in .pth, .pt, .safetensors, but got a.onnx'),
        (['extract', 'epoch_9.pth', '-o', 'cut.pth/a.pth'], 'cut.pth'),
        (['extract', 'plain.pth', '--weights', 'raw', '-o', 'a.pth'], 'plain.pth: it holds one set of weights only'),
        (['publish', 'epoch_9.pth', '-o', 'folder'], '-o folder is a folder: add the beginning of a name, such as '),
        (['publish', 'epoch_9.pth', '-o', 'a', '--dtype', 'int8'], "argument --dtype: invalid choice: 'int8'"),
        (['compare', 'epoch_9.pth', 'broken.safetensors'], 'is not a .safetensors file, or is truncated'),
    ],
)
def test_bad_input_gets_one_line(refused, checkpoint_file, tmp_path, arguments, said):
    content = checkpoint_file.read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[: len(content) // 2])
    (tmp_path / 'broken.safetensors').write_bytes(content[:100])
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'text.pth').write_text('Grüße, ' * 200)
    (tmp_path / 'empty.pth').touch()
    torch.save(dict(state_dict={}, other=Harmful()), tmp_path / 'harmful.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'plain.pth')
    assert said in refused('ema_checkpoint', *arguments)


@pytest.mark.slow
@pytest.mark.any_family
@pytest.mark.parametrize(
    ('kind', 'command'),
    [
        (signal.SIGINT, ['extract', '-o', 'out/a.pth']),
        (signal.SIGTERM, ['extract', '-o', 'out/a.safetensors']),
        (signal.SIGTERM, ['publish', '-o', 'out/a', '--dtype', 'bfloat16']),
    ],
)
def test_interrupted_run_leaves_no_half_file(kind, command, tmp_path):
    stored = {f'{index}': torch.rand(2, 10**6) for index in range(40)}
    torch.save(dict(state_dict=stored), tmp_path / 'large.pth')
    program = [sys.executable, ROOT / 'tools' / 'ema_checkpoint.py', command[0], 'large.pth', *command[1:]]
    for _ in range(5):
        # What runs the tests may ignore interrupts, as a shell does for what it runs in the background.
        process = subprocess.Popen(
            program,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(kind, signal.SIG_DFL),
        )
        while not list((tmp_path / 'out').glob('.*/*')) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(kind)
        said = process.communicate()[1]
        if process.returncode != 0:
            break
        shutil.rmtree(tmp_path / 'out')  # it was done before it heard of it
    assert (process.returncode, said) == ((130, 'interrupted\n') if kind == signal.SIGINT else (143, ''))
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
@pytest.mark.any_family
def test_reader_that_closes_the_pipe_gets_no_traceback(checkpoint_file):
    command = f'{sys.executable} {ROOT}/tools/ema_checkpoint.py inspect {checkpoint_file} {checkpoint_file} | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.count('\n') == 1
    assert done.stderr == ''


@pytest.mark.parametrize('command', ['inspect', 'extract', 'publish', 'compare'])
def test_help_has_an_example(tool, capsys, command):
    with pytest.raises(SystemExit):
        tool('ema_checkpoint', command, '--help')
    assert f'    python tools/ema_checkpoint.py {command} ' in capsys.readouterr().out
