import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint
from safetensors.torch import save_file
from torch import nn
from torch.torch_version import TorchVersion

from mmyolo_ema import ExpMomentumEMA, checkpoint
from tests.helpers import assert_equal, change


class Harmful:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('harm',)


@pytest.fixture
def stored(net):
    """What MMEngine's runner and its EMAHook put into a checkpoint."""
    averaged = ExpMomentumEMA(net)
    averaged.update_parameters(change(net))
    averaged.update_parameters(change(net))
    loss, lr = HistoryBuffer([1.5, 2.5], [1, 1]), np.float64(0.1)
    ema = averaged.state_dict()
    model = {name: ema[f'module.{name}'] for name in net.state_dict()}
    ema.update({f'module.{name}': value for name, value in net.state_dict().items()})
    return dict(
        meta=dict(epoch=1, iter=2, seed=0, dataset_meta=dict(classes=('a',)), time=np.int64(1)),
        state_dict=OrderedDict(model),
        ema_state_dict=ema,
        message_hub=dict(log_scalars=OrderedDict({'train/loss': loss}), runtime_info=OrderedDict(lr=[lr])),
    )


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'epoch_1.pth'


@pytest.mark.parametrize('mmap', [True, False])
@pytest.mark.parametrize('zipped', [True, False])
def test_all_that_a_runner_stores_is_read(stored, path, mmap, zipped):
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    content = checkpoint.read(path, mmap=mmap)
    assert torch.equal(content['state_dict']['linear.weight'], stored['state_dict']['linear.weight'])
    loss = content['message_hub']['log_scalars']['train/loss']
    assert (loss.mean(), loss.min(), loss.statistics('max')) == (2.0, 1.5, 2.5)
    assert content['message_hub']['runtime_info']['lr'] == [0.1]
    assert content['meta'] == stored['meta']


def test_file_written_with_numpy_1_is_read(stored, path):
    # Version 1 kept under numpy.core what version 2 keeps under numpy._core.
    torch.save(stored, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b'cnumpy._core.multiarray\n' in content
    path.write_bytes(content.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n'))
    assert checkpoint.read(path)['message_hub']['runtime_info']['lr'] == [0.1]


@pytest.mark.parametrize('place', ['state_dict', 'message_hub', 'other'])
def test_code_in_a_checkpoint_is_refused_and_not_run(stored, path, place):
    stored[place] = Harmful()
    torch.save(stored, path)
    with pytest.raises(ValueError, match=r'epoch_1.pth is refused, and nothing in it was run: it holds posix.mkdir'):
        checkpoint.read(path)
    assert os.listdir() == ['epoch_1.pth']


@pytest.mark.parametrize(('owner', 'name'), [(os, 'system'), (HistoryBuffer, '__init__'), (HistoryBuffer, '__dict__')])
def test_getattr_in_a_checkpoint_reaches_the_log_history_only(stored, path, owner, name):

    class Reaching:
        def __reduce__(self):
            return getattr, (owner if owner is HistoryBuffer else 'os', name)

    stored['other'] = Reaching()
    torch.save(stored, path)
    with pytest.raises(ValueError, match=r'it holds builtins\.getattr'):
        checkpoint.read(path)


def contents(stored):
    complete = pickle.dumps(stored)
    return {
        'empty': b'',
        'text': b'hello',
        'truncated pickle': complete[: len(complete) // 2],
        'another pickle': pickle.dumps([1], protocol=4),
    }


@pytest.mark.parametrize('kind', ['empty', 'text', 'truncated pickle', 'another pickle'])
def test_file_that_is_no_checkpoint_is_named(stored, path, kind):
    path.write_bytes(contents(stored)[kind])
    with pytest.raises(ValueError, match=r'epoch_1.pth is (not a checkpoint|refused)'):
        checkpoint.read(path)


@pytest.mark.parametrize('share', [0.01, 0.5, 0.99])
@pytest.mark.parametrize('mmap', [True, False])
def test_truncated_file_is_named(stored, path, share, mmap):
    torch.save(stored, path)
    complete = path.read_bytes()
    path.write_bytes(complete[: int(len(complete) * share)])
    with pytest.raises(ValueError, match=r'epoch_1\.pth is not a checkpoint, or is truncated'):
        checkpoint.read(path, mmap=mmap)


def zipped_again(path, compression=zipfile.ZIP_DEFLATED, change=lambda name, content: content):
    """Returns a file with the entries of another; their content may be changed, so that their checksums are right."""
    out = path.with_name(f'again-{path.name}')
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, 'w', compression) as again:
        for name in archive.namelist():
            again.writestr(name, change(name, archive.read(name)))
    return out


@pytest.mark.parametrize('mmap', [True, False])
def test_compressed_archive_gives_the_same_weights(stored, path, mmap):
    torch.save(stored, path)
    content = checkpoint.read(zipped_again(path), mmap=mmap)
    assert_equal(dict(content['state_dict']), dict(stored['state_dict']))


def test_compressed_data_that_fill_the_memory_are_refused(path):
    torch.save(dict(state_dict=dict(weight=torch.zeros(10**8, dtype=torch.uint8))), path)
    with pytest.raises(ValueError, match='compressed data that is far larger than the file'):
        checkpoint.read(zipped_again(path))


@pytest.fixture
def flipped(stored, path):
    """Returns the path of a file in which a bit of the weights was flipped."""
    torch.save(stored, path)
    content = bytearray(path.read_bytes())
    place = content.index(stored['state_dict']['linear.weight'].numpy().tobytes())
    content[place + 3] ^= 64
    path.write_bytes(content)
    return path


def test_flipped_bit_in_the_weights_is_named(flipped):
    checkpoint.read(flipped, mmap=True)
    said = r'epoch_1\.pth is damaged: the checksum of epoch_1/data/\d+ is wrong'
    for use in (
        checkpoint.read,
        checkpoint.verify,
        checkpoint.inspect,
        partial(checkpoint.compare, other=flipped),
        partial(checkpoint.extract, out=flipped.with_name('out.pth')),
        partial(checkpoint.publish, stem=flipped.with_name('out')),
    ):
        with pytest.raises(ValueError, match=said):
            use(flipped)
    assert os.listdir() == ['epoch_1.pth']


def test_file_without_checksums_is_read_but_not_handed_on(stored, path):
    torch.save(stored, path, _use_new_zipfile_serialization=False)
    checkpoint.inspect(path)
    assert checkpoint.compare(path, path).are_equal
    with pytest.raises(ValueError, match=r'has no checksums, since it was written in the format before torch 1\.6'):
        checkpoint.extract(path, path.with_name('out.pth'))


@pytest.mark.parametrize('content', [[1], dict(a=1), dict(state_dict=None), torch.zeros(1)])
def test_file_without_weights_is_named(path, content):
    torch.save(content, path)
    with pytest.raises(ValueError, match="holds no dictionary 'state_dict'"):
        checkpoint.read(path)


@pytest.mark.parametrize(('name', 'said'), [('nowhere.pth', 'there is no checkpoint'), ('.', 'is a folder: name a')])
def test_missing_file_is_named(path, name, said):
    with pytest.raises(OSError, match=said):
        checkpoint.read(name)


def test_torch_that_is_too_old_is_named(stored, path, monkeypatch):
    torch.save(stored, path)
    monkeypatch.setattr('torch.__version__', TorchVersion('2.5.1'))
    with pytest.raises(RuntimeError, match=r'needs torch 2\.6 or newer, but this is'):
        checkpoint.read(path)


def test_mmengine_reads_with_our_list(stored, path, net):
    checkpoint.use_safe_loader()
    torch.save(stored, path)
    load_checkpoint(net, str(path))
    assert torch.equal(net.linear.weight, stored['state_dict']['linear.weight'])
    torch.save(dict(stored, other=Harmful()), path)
    with pytest.raises(ValueError, match='refused'):
        load_checkpoint(net, str(path))
    assert not os.path.exists('harm')


def test_mmengine_reads_from_the_web_with_our_list(stored, path, net, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(path.parent / 'hub'))
    checkpoint.use_safe_loader()
    torch.save(stored, path)
    torch.save(dict(stored, other=Harmful()), 'harmful.pth')
    handler = partial(SimpleHTTPRequestHandler, directory=path.parent)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        load_checkpoint(net, f'{address}/epoch_1.pth')
        with pytest.raises(ValueError, match='refused'):
            load_checkpoint(net, f'{address}/harmful.pth')
        # Of the same name at another address.
        os.mkdir('other')
        torch.save(dict(state_dict=dict.fromkeys(net.state_dict(), torch.zeros(()))), 'other/epoch_1.pth')
        assert CheckpointLoader.load_checkpoint(f'{address}/other/epoch_1.pth')['state_dict']['linear.weight'] == 0
        server.shutdown()
    assert torch.equal(net.linear.weight, stored['state_dict']['linear.weight'])
    assert not os.path.exists('harm')


def test_mmengine_still_reads_bare_weights(path, net):
    # As a backbone's init_cfg names them.
    checkpoint.use_safe_loader()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save(weights, path)
    load_checkpoint(change(net), str(path))
    assert torch.equal(net.linear.weight, weights['linear.weight'])


def test_raw_weights_are_those_of_the_model(stored, net):
    raw = checkpoint.raw_weights(stored)
    assert raw.keys() == net.state_dict().keys()
    assert all(torch.equal(value, raw[name]) for name, value in net.state_dict().items())
    assert not torch.equal(raw['linear.weight'], stored['state_dict']['linear.weight'])


def test_raw_weights_of_a_file_without_ema_raise(stored):
    del stored['ema_state_dict']
    assert not checkpoint.has_ema(stored)
    with pytest.raises(ValueError, match='it holds no EMA'):
        checkpoint.raw_weights(stored)


def test_weights_are_found_by_their_names(stored, net):
    assert checkpoint.weights_in(stored) == ['ema', 'raw']
    short = {f'module.{name}': value + 1 for name, value in net.state_dict().items()}
    stored['ema_averages'] = dict(short=dict(short, steps=torch.tensor(7)), raw=short, broken=[1])
    stored['meta']['mmyolo_ema'] = dict(updates=3, averages=dict(short=dict(mean_age=2.5)))
    assert checkpoint.weights_in(stored) == ['ema', 'raw', 'short']
    assert_equal(
        dict(checkpoint.weights_of(stored, 'short')), {name: value + 1 for name, value in net.state_dict().items()}
    )
    assert_equal(dict(checkpoint.weights_of(stored, 'raw')), dict(net.state_dict()))
    assert_equal(dict(checkpoint.weights_of(stored, 'ema')), dict(stored['state_dict']))
    assert (checkpoint.updates_in(stored), checkpoint.updates_in(stored, 'short')) == (2, 7)
    with pytest.raises(ValueError, match="it holds the ema, raw, short weights only, and none called 'shrt'"):
        checkpoint.weights_of(stored, 'shrt')


@pytest.mark.parametrize(('said', 'kind'), [('short', 'short'), ('two words', 'only'), (['raw'], 'only')])
def test_only_weights_are_those_that_a_file_names(said, kind):
    content = dict(state_dict=dict(weight=torch.ones(1)), meta=dict(mmyolo_ema=dict(weights=said)))
    assert checkpoint.weights_in(content) == [kind]


def test_weights_of_the_model_fit(net):
    checkpoint.load_all(net.state_dict(), net)
    checkpoint.load_all({f'module.{name}': value for name, value in net.state_dict().items()}, net)
    checkpoint.load_all({**net.state_dict(), 'more': torch.zeros(1)}, net)


def test_weights_of_another_model_are_named(net):
    weights = net.state_dict()
    del weights['linear.bias']
    net.linear = nn.Linear(3, 5)
    said = re.escape('linear.weight (checkpoint (4, 3), model (5, 3)); missing: linear.bias')
    with pytest.raises(ValueError, match=said):
        checkpoint.load_all(weights, net)


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        (torch.ones(4, 3, dtype=torch.complex64), 'complex, model floating'),
        (torch.ones(4, 3, dtype=torch.int8), 'integer, model floating'),
        (torch.eye(4, 3).to_sparse(), 'sparse_coo, model floating'),
        (torch.ones(4, 3, device='meta'), 'meta, model floating'),
        ('text', 'str, model floating'),
    ],
)
def test_weights_of_another_kind_of_number_are_named(net, value, said):
    before = net.linear.weight.clone()
    with pytest.raises(ValueError, match=re.escape(f'of another shape or kind: linear.weight (checkpoint {said})')):
        checkpoint.load_all(dict(net.state_dict(), **{'linear.weight': value}), net)
    assert torch.equal(net.linear.weight, before)


class Folder:
    """A work directory with checkpoints, oldest first."""

    def __init__(self, path):
        self.path = path

    def add(self, name, truncated=False, **content):
        file = self.path / name
        torch.save(dict(state_dict={}, **{'optimizer': dict(state=1), **content}), file)
        if truncated:
            file.write_bytes(file.read_bytes()[:-100])
        when = len(list(self.path.iterdir()))
        os.utime(file, (when, when))
        return file

    def name_last(self, file):
        (self.path / 'last_checkpoint').write_text(str(file))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_last_checkpoint_is_the_one_that_is_named(folder):
    named = folder.add('epoch_1.pth')
    folder.add('epoch_2.pth')
    folder.name_last(named)
    assert checkpoint.latest_complete(folder.path) == (named, [])


def test_truncated_or_missing_checkpoint_is_passed_over(folder):
    complete = folder.add('epoch_1.pth')
    folder.add('best_mAP_epoch_1.pth', optimizer=None)
    folder.add('.unfinished.epoch_3.pth')
    truncated, gone = folder.add('epoch_2.pth', truncated=True), folder.path / 'epoch_3.pth'
    folder.name_last(gone)
    assert checkpoint.latest_complete(folder.path) == (complete, [gone, truncated])
    folder.name_last('')
    assert checkpoint.latest_complete(folder.path) == (complete, [truncated])


def test_damaged_checkpoint_is_passed_over(folder, flipped):
    complete = folder.add('epoch_0.pth')
    content = flipped.read_bytes()
    damaged = folder.add('epoch_1.pth')
    damaged.write_bytes(content)
    folder.name_last(damaged)
    assert checkpoint.latest_complete(folder.path) == (complete, [damaged])


def test_checkpoints_in_a_folder_of_their_own_are_found(folder):
    (folder.path / 'out').mkdir()
    complete = folder.add('out/epoch_1.pth')
    truncated = folder.add('out/epoch_2.pth', truncated=True)
    folder.name_last(truncated)
    assert checkpoint.latest_complete(folder.path) == (complete, [truncated])


def test_older_names_are_kept():
    assert checkpoint.latest_whole is checkpoint.latest_complete
    assert checkpoint.Misfits(['a'], {'b': 'b (2,)'}, [], []).other == {'b': 'b (2,)'}


def test_folder_without_checkpoints_has_no_last_one(folder):
    assert checkpoint.latest_complete(folder.path) == (None, [])
    assert checkpoint.latest_complete(folder.path / 'nowhere') == (None, [])


@pytest.mark.parametrize('content', [b'\xff\xfe', b'a\0b', b'loop/a.pth'])
def test_last_checkpoint_that_is_no_path_is_named(folder, content):
    (folder.path / 'loop').symlink_to('loop')
    (folder.path / 'last_checkpoint').write_bytes(str(folder.path).encode() + b'/' + content)
    with pytest.raises(ValueError, match='last_checkpoint does not name a checkpoint'):
        checkpoint.latest_complete(folder.path)


def test_links_that_lead_nowhere_are_passed_over(folder):
    complete = folder.add('epoch_1.pth')
    for name, target in (('dangling.pth', 'nowhere'), ('loop.pth', 'loop.pth')):
        (folder.path / name).symlink_to(target)
    latest, passed_over = checkpoint.latest_complete(folder.path)
    assert latest == complete
    assert {path.name for path in passed_over} <= {'dangling.pth', 'loop.pth'}


def test_torch_with_a_hole_is_warned_of(stored, path, monkeypatch):
    torch.save(stored, path)
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    with pytest.warns(UserWarning, match=r'torch 2\.9\.1 has a hole in its safe reader \(CVE-2026-24747\)'):
        checkpoint.read(path)


def test_meta_that_is_no_dictionary_is_refused(path):
    torch.save(dict(state_dict={}, meta=5), path)
    with pytest.raises(ValueError, match=r'epoch_1\.pth is not a checkpoint of MMEngine: its meta is 5'):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ('content', 'place'),
    [
        (dict(state_dict={5: torch.ones(1)}), 'state_dict'),
        (dict(state_dict={}, ema_averages={5: {}}), 'ema_averages'),
        (dict(state_dict={}, ema_averages=dict(short={5: torch.ones(1)})), r"ema_averages\['short'\]"),
    ],
)
def test_names_that_are_no_text_are_refused(path, content, place):
    torch.save(content, path)
    with pytest.raises(ValueError, match=f'not all names in {place} are text'):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ('header', 'said'),
    [
        (dict(w=dict(dtype='F32', shape=[2**64 - 1, 0], data_offsets=[0, 0])), 'is not a .safetensors file'),
        (dict(w=dict(dtype='F4', shape=[2], data_offsets=[0, 1])), 'is '),
        ({'a\x1b[2J': dict(dtype='F32', shape=[0], data_offsets=[0, 0])}, 'it holds a name with what a terminal'),
    ],
)
def test_odd_header_of_safetensors_is_refused(path, header, said):
    path, text = path.with_suffix('.safetensors'), json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + bytes(header.popitem()[1]['data_offsets'][1]))
    with pytest.raises(ValueError, match=rf'epoch_1\.safetensors .*{said}'):
        checkpoint.read(path)


def test_deep_json_in_safetensors_is_refused(path):
    deep = '[' * 10**5 + ']' * 10**5
    save_file(dict(weight=torch.ones(1)), path.with_suffix('.safetensors'), metadata=dict(meta=deep))
    with pytest.raises(ValueError, match=r'epoch_1\.safetensors is not a \.safetensors file'):
        checkpoint.read(path.with_suffix('.safetensors'))
