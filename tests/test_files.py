import os
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.fileio import io
from mmengine.fileio.backends import registry_utils
from mmengine.runner import save_checkpoint
from PIL import Image

from mmyolo_ema.checkpoint.publication import save
from mmyolo_ema.files import locked, replace, use_whole_files, write_new


def test_file_that_is_there_is_left_alone(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('mine')
    with pytest.raises(FileExistsError):
        write_new(path, lambda temporary: temporary.write_text('yours'))
    assert path.read_text() == 'mine'
    assert list(tmp_path.iterdir()) == [path]


def test_failure_leaves_nothing(tmp_path):

    def fail(temporary):
        temporary.write_text('half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / 'a.json', fail)
    assert not list(tmp_path.iterdir())


def test_interruption_of_the_rename_leaves_no_empty_file(tmp_path, monkeypatch):

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / 'a.json', lambda temporary: temporary.write_text('whole'))
    assert not list(tmp_path.iterdir())


def test_failure_leaves_no_new_folder(tmp_path):
    (tmp_path / 'old').mkdir()
    for write in (write_new, replace):
        with pytest.raises(TypeError):
            write(tmp_path / 'old' / 'new' / 'newer' / 'a.json', lambda temporary: temporary.write_text(5))
    assert list(tmp_path.rglob('*')) == [tmp_path / 'old']


def test_temporary_file_has_the_suffix_that_tells_its_format(tmp_path):
    seen = []
    write_new(tmp_path / 'new' / 'a.png', lambda temporary: seen.append(temporary.suffix) or temporary.touch())
    assert seen == ['.png']
    assert (tmp_path / 'new' / 'a.png').exists()


def test_replaced_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / 'a.txt'
    replace(path, lambda temporary: temporary.write_text('old'))
    replace(path, lambda temporary: temporary.write_text('new'))
    assert path.read_text() == 'new'

    def fail(temporary):
        temporary.write_text('half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(path, fail)
    assert path.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('name', ['.unfinished.a.pth', 'a.pth', 'archive'])
def test_nothing_is_written_through_a_planted_link(tmp_path, name):
    mine = tmp_path / 'mine'
    mine.write_text('mine')
    for write in (Path.touch, lambda temporary: temporary.write_text('new'), partial(save, dict(state_dict={}))):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(mine)
        replace(tmp_path / 'a.pth', write)
    assert mine.read_text() == 'mine'
    assert torch.load(tmp_path / 'a.pth') == dict(state_dict={})
    assert not (tmp_path / 'a.pth').is_symlink()


def test_file_called_like_a_temporary_one_is_left(tmp_path):
    (tmp_path / 'archive').write_text('mine')
    replace(tmp_path / 'a.pth', partial(save, dict(state_dict={})))
    assert (tmp_path / 'archive').read_text() == 'mine'


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / '.unfinished.a.txt'
    left.mkdir()
    (left / 'a.txt').write_text('half')
    replace(tmp_path / 'a.txt', lambda temporary: temporary.write_text('whole'))
    assert [path.name for path in tmp_path.iterdir()] == ['a.txt']


def test_lock_is_not_taken_through_a_link(tmp_path):
    (tmp_path / 'mine').write_text('mine')
    (tmp_path / '.a.lock').symlink_to('mine')
    with pytest.raises(OSError, match=r'\.a\.lock'), locked(tmp_path / 'a'):
        pass
    assert (tmp_path / 'mine').read_text() == 'mine'


@pytest.fixture
def whole_files(monkeypatch):
    monkeypatch.setattr(registry_utils, 'backends', dict(registry_utils.backends))
    monkeypatch.setattr(registry_utils, 'prefix_to_backends', dict(registry_utils.prefix_to_backends))
    monkeypatch.setattr(io, 'backends', registry_utils.backends)
    monkeypatch.setattr(io, 'prefix_to_backends', registry_utils.prefix_to_backends)
    use_whole_files()


def test_failed_save_leaves_the_file_that_was_there(whole_files, tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    save_checkpoint(dict(epoch=1), str(path))
    monkeypatch.setattr(Path, 'write_bytes', lambda path, content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(dict(epoch=2), str(path))
    assert torch.load(path) == dict(epoch=1)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_told_with_the_file(whole_files, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, 'write_bytes', lambda path, content: os.write(os.open('/dev/full', os.O_WRONLY), content))
    with pytest.raises(OSError, match=r"No space left on device: '.*/epoch_1\.pth'"):
        save_checkpoint(dict(epoch=1), str(tmp_path / 'epoch_1.pth'))


def test_error_without_a_number_keeps_what_it_says(tmp_path):
    with pytest.raises(OSError, match='cannot write mode RGBA as JPEG'):
        replace(tmp_path / 'a.jpg', lambda path: Image.new('RGBA', (1, 1)).save(path))


def test_text_is_written_whole_too(whole_files, tmp_path):
    io.put_text('ä', tmp_path / 'a.txt')
    assert (tmp_path / 'a.txt').read_text('utf-8') == 'ä'
