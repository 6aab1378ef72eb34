"""The commands, whichever way they are called."""

import subprocess
import sys

import pytest

from mmyolo_ema import cli
from tests.helpers import ROOT

# MMDetection's mAP of VOC closes its pools only, so that they are terminated when they are collected.
POOL = """
from multiprocessing import get_context
from mmyolo_ema.cli.ending import run

def main():
    for _ in range(100):
        pool = get_context('fork').Pool(4)
        pool.map(abs, [1])
        pool.close()

run(main)
"""


@pytest.mark.slow
@pytest.mark.any_family
def test_worker_processes_of_a_tool_can_be_terminated():
    subprocess.run([sys.executable, '-c', POOL], check=True, timeout=120)


def test_command_is_the_tool_of_that_name(tool, config_file, monkeypatch, capsys):
    tool('ema_schedule', config_file)
    by_tool = capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', ['mmyolo-ema', 'schedule', str(config_file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().out) == (None, by_tool)


@pytest.mark.parametrize(
    ('arguments', 'status', 'said'),
    [
        ([], None, 'posthoc     choose the horizon'),
        (['--help'], None, 'usage: mmyolo-ema COMMAND'),
        (['draw'], 2, 'error: there is no command draw: mmyolo-ema has train, test, schedule, checkpoint, posthoc\n'),
        (['checkpoint', 'inspect', '--help'], 0, '    mmyolo-ema checkpoint inspect work_dirs/run/epoch_*.pth'),
        (['train', '--help'], 0, '    mmyolo-ema train configs/demo/rtmdet_nuclei.py'),
    ],
)
def test_commands_are_listed_and_helped(monkeypatch, capsys, arguments, status, said):
    monkeypatch.setattr(sys, 'argv', ['mmyolo-ema', *arguments])
    code = None
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    assert code == status
    assert said in ''.join(capsys.readouterr())


def test_tool_says_what_python_lacks(tmp_path):
    (tmp_path / 'without.py').write_text("""
import sys
sys.modules['mmyolo_ema'] = None
sys.path.insert(0, sys.argv[1])
from _start import start
start('train')
""")
    done = subprocess.run([sys.executable, 'without.py', ROOT / 'tools'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
    assert 'after make, use .venv/bin/python; elsewhere, pip install -e .' in done.stderr


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_help_does_not_wait_for_torch(command):
    program = (
        "import sys; sys.modules['torch'] = None; from mmyolo_ema import cli; "
        f"sys.argv = ['mmyolo-ema', '{command}', '--help']; cli.main()"
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert f'usage: mmyolo-ema {command}' in done.stdout
