"""Files that were damaged, changed or made up: each command gives the right result, or refuses in one line."""

import os
import random
import resource
import shutil
import time
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmyolo_ema import checkpoint
from tests.helpers import assert_equal, call_tool

pytestmark = pytest.mark.any_family

SECONDS, KILOBYTES = 10, 10**6

NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**9, 10**400, -(2**63), 0.0, 1e308]), st.floats()
)
TENSORS = st.sampled_from(
    [
        torch.tensor(3),
        torch.tensor(10**9),
        torch.tensor(float('inf')),
        torch.ones(2, 0),
        torch.ones(1, 1),
        torch.ones(2) * 1j,
        torch.eye(2).to_sparse(),
        torch.ones(2, device='meta'),
        torch.zeros(1).expand(10**9),
        torch.tensor(True),
    ]
)
TEXTS = st.one_of(st.text(max_size=5), st.sampled_from(['\x1b[2J\nequal', 'custom_hooks = [' * 50, 'a' * 5000]))
LEAVES = st.one_of(NUMBERS, TENSORS, TEXTS)
KEYS = st.one_of(
    st.sampled_from(['schedule', 'posthoc', 'mean_age', 'updates', 'type', 'get', 'weights']),
    TEXTS,
    st.integers(0, 5),
    st.tuples(st.integers(0, 1)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
PLACES = [
    ('meta',),
    ('state_dict',),
    ('ema_state_dict',),
    ('message_hub',),
    ('optimizer',),
    ('meta', 'cfg'),
    ('meta', 'mmyolo_ema'),
    ('meta', 'mmyolo_ema', 'schedule'),
    ('meta', 'mmyolo_ema', 'mean_age'),
    ('meta', 'mmyolo_ema', 'posthoc'),
    ('meta', 'mmyolo_ema', 'updates_per_epoch'),
    ('meta', 'iter'),
    ('meta', 'seed'),
    ('meta', 5),
    ('ema_state_dict', 'steps'),
    ('ema_state_dict', 5),
    ('state_dict', 'backbone.stem.0.bn.weight'),
    ('state_dict', 'backbone.stem.0.bn.num_batches_tracked'),
    ('ema_state_dict', 'module.backbone.stem.0.bn.weight'),
    ('second_ema_state_dict',),
]


@pytest.fixture
def files(trained, tmp_path, monkeypatch):
    """Returns two checkpoints of one run, with a few of the tensors of a real one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    paths = []
    for epoch in (2, 4):
        content = checkpoint.read(trained.with_name(f'epoch_{epoch}.pth'))
        for part in ('state_dict', 'ema_state_dict'):
            content[part] = {
                name: value for name, value in content[part].items() if 'backbone.stem.0.' in name or name == 'steps'
            }
        content['optimizer'] = dict(
            state=dict(list(content['optimizer']['state'].items())[:3]),
            param_groups=content['optimizer']['param_groups'][:3],
        )
        content['param_schedulers'] = content['param_schedulers'][:1]
        paths.append(tmp_path / 'run' / f'epoch_{epoch}.pth')
        torch.save(content, paths[-1])
    return paths


@pytest.fixture
def command(capsys, tmp_path):
    """Returns a function that runs a command on files, and returns its status: that of a refusal in one line is 2."""

    def run(name, *arguments):
        before, start = sorted(tmp_path.rglob('*')), time.monotonic()
        capsys.readouterr()
        try:
            status = call_tool(name, *arguments) or 0
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        assert time.monotonic() - start < SECONDS, arguments
        assert all(line.isprintable() for line in (said.out + said.err).split('\n'))
        if status == 2:
            assert said.err.startswith('error: ')
            assert said.err.count('\n') == 1
            assert sorted(tmp_path.rglob('*')) == before, 'nothing may be written'
        else:
            assert status in (0, 1), said
            assert said.err == ''
        return status

    return run


@pytest.fixture(autouse=True)
def _memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES


def flipped(path, choose):
    content = bytearray(path.read_bytes())
    for _ in range(choose.randint(1, 3)):
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    path.write_bytes(content)


def cut(path, choose):
    content = path.read_bytes()
    start = choose.randrange(len(content))
    end = choose.choice([len(content), start + choose.randrange(100)])
    path.write_bytes(content[:start] + (b'' if end == len(content) else content[end:]))


def overwritten(path, choose):
    content = bytearray(path.read_bytes())
    start = choose.randrange(len(content))
    content[start : start + 64] = choose.randbytes(64)
    path.write_bytes(content)


def zipped_again(path, choose):
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    if choose.random() < 0.5:
        choose.shuffle(entries)
    compression = choose.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(path, 'w', compression) as again:
        for name, content in entries:
            again.writestr(name, content)


@pytest.mark.slow
def test_damaged_file_gives_the_right_result_or_one_line(files, command, tmp_path):
    choose = random.Random(0)
    older, _ = files
    whole = older.read_bytes()
    uses = {
        'raw.pth': ('ema_checkpoint', 'extract', older, '--weights', 'raw', '-o', 'raw.pth'),
        'built.pth': ('posthoc_ema', 'build', 'run', '--horizon', '8', '-o', 'built.pth'),
        'ema-*.pth': ('ema_checkpoint', 'publish', older, '-o', 'ema'),
    }
    right = {}
    for out, use in uses.items():
        assert command(*use) == 0
        (written,) = tmp_path.glob(out)
        right[out] = checkpoint.read(written)['state_dict']
        written.unlink()
    shutil.copy(older, 'whole.pth')
    refused = 0
    for damage in [flipped, cut, overwritten, zipped_again] * 25:
        older.write_bytes(whole)
        damage(older, choose)
        status = command('ema_checkpoint', 'compare', older, 'whole.pth')
        assert status in (0, 2), 'damaged weights are never compared'
        refused += status == 2
        for out, use in uses.items():
            if command(*use) == 0:
                (written,) = tmp_path.glob(out)
                assert_equal(dict(checkpoint.read(written)['state_dict']), dict(right[out]))
                written.unlink()
    assert 25 < refused < 90


@pytest.fixture
def use(files, command):
    """Returns a function that puts a value into a checkpoint of a run, and goes through the commands."""

    def put_and_use(place, value):
        older, newest = files
        kept = newest.read_bytes()
        part = content = checkpoint.read(newest)
        for key in place[:-1]:
            part = part.setdefault(key, {})
        part[place[-1]] = value
        try:
            torch.save(content, newest)
            for path in ('raw.pth', 'raw.safetensors'):
                command('ema_checkpoint', 'extract', newest, '--weights', 'raw', '-o', path)
            command('ema_checkpoint', 'inspect', newest)
            command('ema_checkpoint', 'inspect', '--json', newest)
            command('ema_checkpoint', 'compare', newest, older)
            command('posthoc_ema', 'fit', 'run', '--horizon', '8', '1epochs')
            command('posthoc_ema', 'build', 'run', '--horizon', '8', '-o', 'built.pth')
        finally:
            newest.write_bytes(kept)
            for path in ('raw.pth', 'raw.safetensors', 'built.pth'):
                if os.path.exists(path):
                    os.remove(path)

    return put_and_use


HOOK = "custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, gamma={})]"
SCHEDULE = ('meta', 'mmyolo_ema', 'schedule')


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        (('meta', 'mmyolo_ema', 'posthoc'), 5),
        (('meta', 'mmyolo_ema', 'posthoc'), dict(mean_age=[1], error='text')),
        (('meta', 'mmyolo_ema', 'updates_per_epoch'), 'text'),
        (('meta', 'mmyolo_ema'), {'schedule': None, 'updates_per_epoch': -1}),
        (SCHEDULE, [[float('inf'), None]]),
        (SCHEDULE, [[0, torch.tensor(1j)]]),
        (('meta', 'mmyolo_ema'), dict(buffers=5)),
        (SCHEDULE, [[0, dict(ema_type='ExponentialMovingAverage', momentum=0.1)]] * 2000),
        (('meta', 'mmyolo_ema'), {'schedule': None}),
        (('meta', 5), {(1, 2): 3}),
        (('ema_state_dict', 5), torch.ones(1)),
        (('ema_state_dict', 'steps'), 10**9),
        (('ema_state_dict', 'module.backbone.stem.0.bn.num_batches_tracked'), torch.tensor(float('inf'))),
        (('meta', 'cfg'), HOOK.format(10**400)),
        (('meta', 'cfg'), 'x = [' + '0, ' * 10**6 + ']'),
    ],
    ids=range(15),
)
def test_odd_content_is_used_or_refused_in_one_line(files, use, place, value):
    if place == ('meta', 'cfg'):  # which counts in files that do not tell their schedule themselves
        for path in files:
            content = checkpoint.read(path)
            del content['meta']['mmyolo_ema']
            torch.save(content, path)
    use(place, value)


@pytest.mark.slow
@given(place=st.sampled_from(PLACES), value=VALUES)
@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_made_up_content_is_used_or_refused_in_one_line(use, place, value):
    use(place, value)
