import pytest

from mmyolo_ema.files import write_new


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


def test_temporary_file_has_the_suffix_that_tells_its_format(tmp_path):
    seen = []
    write_new(tmp_path / 'new' / 'a.png', lambda temporary: seen.append(temporary.suffix) or temporary.touch())
    assert seen == ['.png']
    assert (tmp_path / 'new' / 'a.png').exists()
