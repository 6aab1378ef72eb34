import hashlib
import subprocess
import sys
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import load_checkpoint
from safetensors.torch import load_file

from mmyolo_ema import checkpoint
from mmyolo_ema.checkpoint import extract, publish
from tests.helpers import assert_equal


@pytest.fixture
def weights(trained):
    content = checkpoint.read(trained)
    return dict(ema=content['state_dict'], raw=checkpoint.raw_weights(content))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['ema', 'raw'])
def test_extracted_weights_open_everywhere(trained, weights, tmp_path, detector, demo_config, kind):
    out = tmp_path / 'new' / f'{kind}.pth'
    extract(trained, out, kind)
    # torch's safe reader, in a process that knows no other package.
    script = f'import torch; print(*torch.load({str(out)!r}, weights_only=True))'
    said = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert said.stdout == 'meta state_dict\n', said.stderr
    load_checkpoint(detector, str(out), strict=True)
    assert_equal(dict(detector.state_dict()), dict(weights[kind]))
    built = init_detector(demo_config(), str(out), device='cpu')
    assert_equal(dict(built.state_dict()), dict(weights[kind]))
    assert built.dataset_meta['classes'] == ('nucleus',)
    said = checkpoint.read(trained)['meta']['mmyolo_ema']
    assert checkpoint.read(out)['meta']['mmyolo_ema'] == dict(said if kind == 'ema' else {}, weights=kind, updates=8)


def test_extracted_file_shares_what_the_model_shares(trained, tmp_path):
    extract(trained, tmp_path / 'a.pth')
    content = checkpoint.read(tmp_path / 'a.pth')['state_dict']
    first, second = (content[f'bbox_head.cls_convs.{level}.0.conv.weight'] for level in (0, 1))
    assert first.data_ptr() == second.data_ptr()
    # What modules know of older names travels along.
    assert content._metadata['backbone.stem.0.bn'] == dict(version=2)


@pytest.mark.parametrize('kind', ['ema', 'raw'])
def test_safetensors_hold_each_tensor_and_the_meta(trained, weights, tmp_path, kind):
    out = tmp_path / 'a.safetensors'
    extract(trained, out, kind)
    stored = load_file(out)
    assert_equal({name: stored[name] for name in weights[kind]}, dict(weights[kind]))
    assert checkpoint.read(out)['meta']['epoch'] == 4
    (tmp_path / 'other').write_text('')
    assert out.stat().st_mode == (tmp_path / 'other').stat().st_mode


def test_safetensors_refuse_what_is_no_tensor(tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.ones(1), extra=dict(a=1))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth cannot be written .*: it holds tensors only, but extra is a dict'):
        extract(tmp_path / 'a.pth', tmp_path / 'new' / 'folder' / 'b.safetensors')
    torch.save(dict(state_dict=dict(__metadata__=torch.ones(1))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth cannot be written .*: no tensor in it may be called __metadata__'):
        extract(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(
    'shared',
    [lambda weight: weight, lambda weight: weight.to(memory_format=torch.channels_last), lambda weight: weight.conj()],
)
def test_safetensors_hold_shared_tensors_of_any_form(tmp_path, shared):
    weight = shared(torch.randn(4, 3, 2, 2, dtype=torch.complex64))
    torch.save(dict(state_dict=dict(a=weight, b=weight, c=weight.transpose(0, 1))), tmp_path / 'a.pth')
    extract(tmp_path / 'a.pth', tmp_path / 'b.safetensors')
    assert checkpoint.compare(tmp_path / 'a.pth', tmp_path / 'b.safetensors').are_equal


def test_extra_state_keeps_its_precision(tmp_path):
    torch.save(dict(state_dict={'a': torch.ones(1), 'a._extra_state': torch.tensor([1e9])}), tmp_path / 'a.pth')
    done = publish(tmp_path / 'a.pth', tmp_path / 'b', dtype=torch.float16)
    stored = torch.load(done.path, weights_only=True)['state_dict']
    assert (stored['a'].dtype, stored['a._extra_state'].dtype) == (torch.float16, torch.float32)


def test_published_name_tells_the_content(trained, weights, tmp_path):
    with pytest.raises(ValueError, match=r'a published file is a \.pth file, but got .*rtmdet\.safetensors'):
        publish(trained, tmp_path / 'rtmdet.safetensors')
    done = publish(trained, tmp_path / 'rtmdet.pth')
    content = done.path.read_bytes()
    assert done.path.name == f'rtmdet-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    assert (done.worst, done.error) == (None, 0)
    stored = torch.load(done.path, weights_only=True)
    assert list(stored) == ['meta', 'state_dict']
    assert_equal(dict(stored['state_dict']), dict(weights['ema']))
    # The same weights have the same name, which is not written twice.
    with pytest.raises(FileExistsError):
        publish(trained, tmp_path / 'rtmdet')
    assert done.path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_tells_what_it_costs(trained, weights, tmp_path, dtype):
    done = publish(trained, tmp_path / 'a', 'raw', dtype)
    stored = torch.load(done.path, weights_only=True)['state_dict']
    errors = {}
    for name, value in weights['raw'].items():
        kept = not value.is_floating_point() or name.endswith(('running_mean', 'running_var'))
        assert stored[name].dtype == (value.dtype if kept else dtype)
        if not kept:
            lost, size = (stored[name].double() - value.double()).norm(), value.double().norm()
            errors[name] = float(lost / size.clamp(min=1e-30))
    assert done.error == pytest.approx(max(errors.values()))
    assert errors[done.worst] == pytest.approx(done.error)
    assert done.path.stat().st_size < 0.55 * 9e6
    first, second = (stored[f'bbox_head.cls_convs.{level}.0.conv.weight'] for level in (0, 1))
    assert first.data_ptr() == second.data_ptr()


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.tensor([1e5]), b=torch.tensor([float('inf')]))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='holds weights that are too large for float16: a; choose a wider one'):
        publish(tmp_path / 'a.pth', tmp_path / 'b', dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


def test_extracted_raw_weights_are_not_taken_for_averaged_ones(trained, tmp_path):
    extract(trained, tmp_path / 'raw.pth', 'raw')
    with pytest.raises(ValueError, match="it holds the raw weights only, and none called 'ema'"):
        extract(tmp_path / 'raw.pth', tmp_path / 'b.pth', 'ema')
    extract(tmp_path / 'raw.pth', tmp_path / 'b.pth')
    assert checkpoint.read(tmp_path / 'b.pth')['meta']['mmyolo_ema'] == dict(weights='raw', updates=8)


def test_raw_weights_of_a_file_without_average_are_refused(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='it holds one set of weights only'):
        extract(tmp_path / 'a.pth', tmp_path / 'b.pth', 'raw')


def test_numbers_of_numpy_become_plain(tmp_path):
    meta = dict(epoch=np.int64(3), array=np.arange(2), nested=[dict(a=(np.float32(0.5),))], ordered=OrderedDict(b=1))
    meta |= dict(keys={np.int64(3): 1}, members={np.int64(4)}, counts=Counter('aab'), log=HistoryBuffer([2.0], [1]))
    weights = OrderedDict(a=torch.ones(1))
    weights._metadata = {'': dict(version=np.int64(2)), 3: 4}
    average = {'module.a': torch.ones(1), 'steps': torch.tensor(3)}
    content = dict(meta=dict(meta, mmyolo_ema=dict(mean_age=np.ones(2))), state_dict=weights, ema_state_dict=average)
    torch.save(content, tmp_path / 'a.pth')
    extract(tmp_path / 'a.pth', tmp_path / 'b.pth')
    stored = torch.load(tmp_path / 'b.pth', weights_only=True)
    assert stored['meta'].pop('mmyolo_ema') == dict(mean_age=[1, 1], weights='ema', updates=3)
    assert stored['meta'] == dict(
        epoch=3,
        array=[0, 1],
        nested=[dict(a=(0.5,))],
        ordered=dict(b=1),
        keys={3: 1},
        members={4},
        counts=dict(a=2, b=1),
        log=[[2.0], [1]],
    )
    assert stored['state_dict']._metadata == {'': dict(version=2)}
    extract(tmp_path / 'a.pth', tmp_path / 'b.safetensors')


def test_file_that_is_there_is_left(trained, tmp_path):
    (tmp_path / 'a.pth').write_text('mine')
    with pytest.raises(FileExistsError):
        extract(trained, tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_text() == 'mine'


def test_full_disk_is_named(trained, tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'none', disk], capture_output=True).returncode:
        pytest.skip('a file system cannot be mounted here')
    try:
        with pytest.raises(OSError, match=r"No space left on device: 'a\.pth'"):
            extract(trained, disk / 'a.pth')
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(['umount', disk], check=True)
