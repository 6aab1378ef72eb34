"""Pickle programs and archives that pass for checkpoints: each is refused before anything of it is used."""

import struct
import zipfile

import numpy as np
import pytest
import torch

from mmyolo_ema import checkpoint

WEIGHT = np.ones(4, 'f4').tobytes()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def integer(value):
    return b'J' + struct.pack('<i', value)


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def tensor(count):
    storage = b'(' + text('storage') + name('torch', 'FloatStorage') + text('0') + text('cpu') + integer(count) + b'tQ'
    return (name('torch._utils', '_rebuild_tensor_v2') + b'(' + storage + integer(0) + b'(' + integer(count) + b't(' +
            integer(1) + b't\x89' + name('collections', 'OrderedDict') + b')RtR')


def write(path, program, entry='data.pkl', weight=WEIGHT):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'a/{entry}', b'\x80\x02}(' + text('state_dict') + program + b'u.')
        archive.writestr('a/version', '3\n')
        archive.writestr('a/data/0', weight)
    return path


MEMORY = (b'}' + text('w') + tensor(4) + b'(' + name('torch.storage', 'UntypedStorage') + integer(0) + b'\x85R' +
          integer(0) + b'(' + integer(2000000) + b't(' + integer(1) + b'ttbs')
DEEP = b'})' + b'\x85' * 1000 + b'Ns'
CALL_OF_A_LIST = b'}' + text('t') + b']q\x01' + b']h\x01ah\x01aq\x01' * 40 + b')Rs'
LARGE_KEY = b'}N\x85' + b'q\x01h\x01\x86' * 18 + b'q\x02Ns'


@pytest.mark.parametrize(('program', 'entry', 'said'), [
    (MEMORY, 'data.pkl', 'a program that calls or changes torch'),
    (DEEP, 'data.pkl', 'tuples that are nested too deep'),
    (DEEP, 'DATA.PKL', 'tuples that are nested too deep'),
    (CALL_OF_A_LIST, 'data.pkl', 'a program that calls or changes what is no name'),
    (LARGE_KEY, 'data.pkl', 'tuples that are nested too deep'),
], ids=['memory', 'deep', 'case of a name', 'call of a list', 'large key'])
def test_program_is_refused(tmp_path, program, entry, said):
    with pytest.raises(ValueError, match=said):
        checkpoint.read(write(tmp_path / 'a.pth', program, entry))


def test_written_program_is_read(tmp_path):
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(4) + b's')
    assert torch.equal(checkpoint.read(path)['state_dict']['w'], torch.ones(4))


def test_archive_with_two_directories_is_refused(tmp_path):
    good, bad = (write(tmp_path / f'{value}.pth', b'}' + text('w') + tensor(4) + b's', weight=np.full(4, value, 'f4')
                       .tobytes()).read_bytes() for value in (1, 2))
    # The end of the good archive, which points to the directory of the bad one.
    both = tmp_path / 'both.pth'
    end = bytearray(good[-22:])
    end[16:20] = bad[-6:-2]
    both.write_bytes(bad[:-22] + good[:-22] + end)
    with pytest.raises(ValueError, match='two directories'):
        checkpoint.read(both)
    with pytest.raises(ValueError, match='two directories'):
        checkpoint.verify(both)


def test_array_without_content_counts_as_the_list_that_it_makes(tmp_path):
    torch.save(dict(meta=dict(a=np.zeros((20000, 20000, 0))), state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='far more than its size'):
        checkpoint.read(tmp_path / 'a.pth')
