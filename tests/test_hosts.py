"""Training on two hosts, which are two network namespaces here: with a folder for each, and with a shared one."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch

from mmyolo_ema import checkpoint
from tests.helpers import ROOT

pytestmark = pytest.mark.slow


class Host:
    """A network namespace with one address, and a host name of its own."""

    def __init__(self, rank):
        self.rank, self.name = rank, f'ema{os.getpid()}{"ab"[rank]}'

    @property
    def command(self):
        return [
            'ip',
            'netns',
            'exec',
            self.name,
            'unshare',
            '--uts',
            'sh',
            '-c',
            'hostname "$0" && exec "$@"',
            self.name,
        ]

    def start(self, root, folder, *arguments):
        """Starts one process of a training in a folder."""
        env = dict(
            os.environ,
            NNODES='2',
            NODE_RANK=str(self.rank),
            MASTER_ADDR='10.77.0.1',
            PYTHON=sys.executable,
            GLOO_SOCKET_IFNAME=self.name,
            OMP_NUM_THREADS='1',
            PYTHONPATH=str(root),
        )
        self.said = folder / f'{self.name}.txt'
        with open(self.said, 'w') as said:
            return subprocess.Popen(
                [*self.command, str(root / 'tools' / 'dist_train.sh'), *arguments[:1], '1', *arguments[1:]],
                cwd=folder,
                env=env,
                stdout=said,
                stderr=said,
            )


def refused(*command):
    return subprocess.run(command, capture_output=True).returncode != 0


@pytest.fixture
def hosts():
    pair = [Host(0), Host(1)]
    with ExitStack() as stack:
        for host in pair:
            if refused('ip', 'netns', 'add', host.name):
                pytest.skip('network namespaces are refused here')
            stack.callback(subprocess.run, ['ip', 'netns', 'delete', host.name], check=True)
        one, other = (host.name for host in pair)
        if refused('ip', 'link', 'add', one, 'netns', one, 'type', 'veth', 'peer', 'name', other, 'netns', other):
            pytest.skip('network namespaces are refused here')
        for host in pair:
            for change in (
                ['link', 'set', 'lo', 'up'],
                ['address', 'add', f'10.77.0.{host.rank + 1}/24', 'dev', host.name],
                ['link', 'set', host.name, 'up'],
            ):
                subprocess.run(['ip', '-n', host.name, *change], check=True)
            if refused(*host.command, 'true'):
                pytest.skip('host names are refused here')
        yield pair


def statuses_of(processes):
    """Returns the exit statuses of processes that run beside each other."""
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def folder(tmp_path, trained, demo_config):
    """Returns a function that makes a folder with a config, and the work directory of a run or none."""
    cfg = demo_config(**{'train_cfg.max_epochs': 5, 'param_scheduler.0.end': 5})
    cfg.pop('work_dir')

    def make(name, is_begun):
        path = tmp_path / name
        (path / 'work_dirs' / 'small').mkdir(parents=True)
        cfg.dump(path / 'small.py')
        if is_begun:
            shutil.copy(trained, path / 'work_dirs' / 'small' / 'epoch_4.pth')
        return path

    return make


def test_host_without_the_checkpoint_stops_all_with_one_error(hosts, folder):
    assert all(
        statuses_of([host.start(ROOT, folder(host.name, host.rank == 0), 'small.py', '--resume') for host in hosts])
    )
    errors = [line for host in hosts for line in host.said.read_text().splitlines() if line.startswith('error: ')]
    assert len(errors) == 2
    assert len(set(errors)) == 1
    assert f'rank 1 on host {hosts[1].name}: ' in errors[0]
    assert 'there is no checkpoint' in errors[0]
    assert 'Each host needs it: share the folder, or copy it there' in errors[0]


def test_hosts_that_share_a_folder_train_as_one_with_two_processes(hosts, folder):
    shared, alone = folder('shared', True), folder('alone', True)
    statuses = statuses_of([host.start(ROOT, shared, 'small.py', '--resume') for host in hosts])
    assert statuses == [0, 0], [host.said.read_text()[-3000:] for host in hosts]
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = str(free.getsockname()[1])
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), PORT=port)
    subprocess.run(
        [ROOT / 'tools' / 'dist_train.sh', 'small.py', '2', '--resume'],
        cwd=alone,
        env=env,
        check=True,
        capture_output=True,
    )
    one, other = (checkpoint.read(path / 'work_dirs' / 'small' / 'epoch_5.pth') for path in (shared, alone))
    assert one['ema_state_dict']['steps'] == other['ema_state_dict']['steps'] == 9
    for name, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][name]), name
    for name, value in checkpoint.raw_weights(one).items():
        assert torch.equal(value, checkpoint.raw_weights(other)[name]), name
