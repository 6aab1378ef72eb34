"""Pickle programs and archives that pass for checkpoints: each is refused before anything of it is used."""

import struct
import zipfile
from functools import partial

import numpy as np
import pytest
import torch

from mmyolo_ema import checkpoint

pytestmark = pytest.mark.any_family

WEIGHT = np.ones(4, 'f4').tobytes()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def integer(value):
    return b'J' + struct.pack('<i', value)


def long(value):
    return b'\x8a' + bytes([20]) + value.to_bytes(20, 'little')


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def tensor(count, kind='FloatStorage', key='0', named=text):
    storage = b'(' + text('storage') + name('torch', kind) + named(key) + text('cpu') + integer(count) + b'tQ'
    return (
        name('torch._utils', '_rebuild_tensor_v2')
        + b'('
        + storage
        + integer(0)
        + b'('
        + integer(count)
        + b't('
        + integer(1)
        + b't\x89'
        + name('collections', 'OrderedDict')
        + b')RtR'
    )


def write(path, program, entry='data.pkl', weight=WEIGHT):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'a/{entry}', b'\x80\x02}(' + text('state_dict') + program + b'u.')
        archive.writestr('a/version', '3\n')
        archive.writestr('a/data/0', weight)
    return path


MEMORY = (
    b'}'
    + text('w')
    + tensor(4)
    + b'('
    + name('torch.storage', 'UntypedStorage')
    + integer(0)
    + b'\x85R'
    + integer(0)
    + b'('
    + integer(2000000)
    + b't('
    + integer(1)
    + b'ttbs'
)
DEEP = b'})' + b'\x85' * 1000 + b'Ns'
CALL_OF_A_LIST = b'}' + text('t') + b']q\x01' + b']h\x01ah\x01aq\x01' * 40 + b')Rs'
LARGE_KEY = b'}N\x85' + b'q\x01h\x01\x86' * 18 + b'q\x02Ns'
LIST, TUPLE = b'](' + b'K\x01' * 5000 + b'e', b'(' + b'K\x01' * 5000 + b't'
PAIRS = b'](' + b''.join(text('a') + b'N\x86' for _ in range(5000)) + b'e'
MORE = 'far more than its size, by naming one thing many times'


def again(call, times):
    """Returns a program that makes a call with the same arguments again and again."""
    return b'}' + text('a') + b'](' + call.replace(b'R', b'q\x07R') + b'h\x06h\x07R' * times + b'es'


def keys(*programs):
    """Returns a program of a dictionary with such keys."""
    return b'}' + text('a') + b'}(' + b'N'.join(programs) + b'Nus'


DEEPER, MORE_KEYS = 'tuples that are nested too deep', 'more than 100 keys that are neither text nor a number'
PROGRAMS = {
    'memory': (MEMORY, 'a program that calls or changes torch'),
    'deep': (DEEP, DEEPER),
    'call of a list': (CALL_OF_A_LIST, 'a program that calls or changes what is no name'),
    'large key': (LARGE_KEY, DEEPER),
    'text': (again(name('_codecs', 'encode') + b'q\x06' + text('a' * 200_000) + text('latin1') + b'\x86R', 400), MORE),
    'set': (again(name('builtins', 'set') + b'q\x06' + LIST + b'\x85R', 220), MORE),
    'sizes': (again(name('torch', 'Size') + b'q\x06' + TUPLE + b'\x85R', 220), MORE),
    'dictionary': (again(name('collections', 'OrderedDict') + b'q\x06' + PAIRS + b'\x85R', 220), MORE),
    'state': (name('collections', 'OrderedDict') + b')R}q\x06bh\x06b', 'calls or changes collections OrderedDict'),
    'steps': (b'}' + text('a') + b'](' + b'\x8f' * 300_000 + b'es', 'a program that takes more than'),
    'integers of one hash': (keys(*(long((2**61 - 1) * count) for count in range(9, 200))), MORE_KEYS),
    'tuples': (keys(*(integer(count) + b'\x85' for count in range(200))), MORE_KEYS),
    'set of long integers': (keys(name('builtins', 'set') + b'](' + long(2**100) + b'e\x85R'), 'a set or dictionary'),
}


@pytest.mark.parametrize('kind', PROGRAMS)
def test_program_is_refused(tmp_path, kind):
    program, said = PROGRAMS[kind]
    with pytest.raises(ValueError, match=rf'a\.pth is refused, and nothing in it was run: it holds .*{said}'):
        checkpoint.read(write(tmp_path / 'a.pth', program))


def test_program_is_refused_whatever_the_case_of_its_name(tmp_path):
    with pytest.raises(ValueError, match=DEEPER):
        checkpoint.read(write(tmp_path / 'a.pth', DEEP, 'DATA.PKL'))


def test_written_program_is_read(tmp_path):
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(4) + b's')
    assert torch.equal(checkpoint.read(path)['state_dict']['w'], torch.ones(4))


@pytest.mark.parametrize(
    ('count', 'kind', 'key'),
    [(8, 'FloatStorage', '0'), (2, 'FloatStorage', '0'), (4, 'DoubleStorage', '0'), (4, 'FloatStorage', '1')],
)
def test_tensor_of_another_size_than_its_record_is_refused(tmp_path, count, kind, key):
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(count, kind, key) + b's')
    for use in (
        partial(checkpoint.read, mmap=True),
        checkpoint.inspect,
        partial(checkpoint.compare, other=path),
        partial(checkpoint.extract, out=tmp_path / 'out.pth'),
    ):
        with pytest.raises(ValueError, match=rf"a\.pth is refused, .* is not the size of its record '{key}'"):
            use(path)


@pytest.mark.parametrize(
    'key',
    [name('_codecs', 'encode') + text('0') + text('latin1') + b'\x86R', b'\x88', integer(2), b'U\x02\xc2\xb2'],
    ids=['call', 'boolean', 'integer', 'bytes'],
)
def test_record_of_another_name_than_a_number_in_text_is_refused(tmp_path, key):
    # A number is listed in an older file by the opcode that tells the protocol; a call is known by what is called.
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(4, key=key, named=bytes) + b's')
    with zipfile.ZipFile(path, 'a') as archive:
        for record in ('encode', 'None', '2', '\xc2\xb2'):
            archive.writestr(f'a/data/{record}', WEIGHT)
    torch.save(dict(state_dict={}), tmp_path / 'b.pth', _use_new_zipfile_serialization=False)
    older = (tmp_path / 'b.pth').read_bytes()
    start = older.rindex(b'\x80\x02}')
    (tmp_path / 'b.pth').write_bytes(
        older[:start]
        + b'\x80\x02}('
        + text('state_dict')
        + b'}'
        + text('w')
        + tensor(4, key=key, named=bytes).replace(b'tQ', b'NtQ')
        + b'su.\x80\x02].'
    )
    for file in (path, tmp_path / 'b.pth'):
        with pytest.raises(ValueError, match='a tensor whose record is not named by a number'):
            checkpoint.read(file, mmap=True)


@pytest.mark.parametrize('is_archive', [True, False])
def test_newer_pickle_protocol_is_named(tmp_path, is_archive):
    for protocol in (3, 4, 5):
        torch.save(
            dict(state_dict=dict(w=torch.ones(4))),
            tmp_path / 'a.pth',
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=is_archive,
        )
        if protocol == 3:
            assert torch.equal(checkpoint.read(tmp_path / 'a.pth')['state_dict']['w'], torch.ones(4))
        else:
            with pytest.raises(ValueError, match=f'a pickle of protocol {protocol}, which torch does not read safely'):
                checkpoint.read(tmp_path / 'a.pth')


def test_tensor_of_many_dimensions_is_refused(tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones([1] * 5000))), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a tensor of 5000 dimensions'):
        checkpoint.read(tmp_path / 'a.pth')


def test_archive_of_several_pickles_is_refused(tmp_path):
    path = write(tmp_path / 'a.pth', b'}')
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('b/data.pkl', b'N.')
    with pytest.raises(ValueError, match='the archive has 2 pickles'):
        checkpoint.read(path)


@pytest.mark.parametrize(
    'meta',
    [
        dict(classes=tuple(f'class {index}' for index in range(20_000))),
        dict(log=[dict(step=index, loss=0.5) for index in range(100_000)]),
    ],
    ids=['classes', 'log'],
)
def test_long_record_of_a_run_is_read(tmp_path, meta):
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'a.pth')
    assert checkpoint.read(tmp_path / 'a.pth')['meta'] == meta


@pytest.mark.parametrize('names', [b'](e', b'X\x01\x00\x00\x000](e', b'}X\x01\x00\x00\x00aX\x01\x00\x00\x000s'])
def test_older_file_that_leaves_out_numbers_is_refused(tmp_path, names):
    torch.save(dict(state_dict=dict(w=torch.ones(4))), tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    content = (tmp_path / 'a.pth').read_bytes()
    start = content.rindex(b'\x80\x02]')
    key = content[start + 10 : content.index(b'q\x01', start)]
    (tmp_path / 'a.pth').write_bytes(
        content[: start + 2]
        + names.replace(b'\x01\x00\x00\x000', bytes([len(key)]) + b'\0\0\0' + key)
        + b'.'
        + content[-24:]
    )
    with pytest.raises(ValueError, match='it holds a list of tensors that is not complete'):
        checkpoint.read(tmp_path / 'a.pth')


def test_record_that_the_file_has_twice_or_in_two_sizes_is_refused(tmp_path):
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(4) + b's')
    content = path.read_bytes()
    directory = content.rindex(b'a/data/0') - 46
    path.write_bytes(content[: directory + 24] + struct.pack('<I', 32) + content[directory + 28 :])
    with pytest.raises(ValueError, match='an entry of two sizes'):
        checkpoint.read(path, mmap=True)
    path.write_bytes(content)
    with zipfile.ZipFile(path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate'):
        archive.writestr('a/data/0', WEIGHT)
    with pytest.raises(ValueError, match='two entries of one name'):
        checkpoint.read(path, mmap=True)


def test_archive_with_two_directories_is_refused(tmp_path):
    good, bad = (
        write(
            tmp_path / f'{value}.pth', b'}' + text('w') + tensor(4) + b's', weight=np.full(4, value, 'f4').tobytes()
        ).read_bytes()
        for value in (1, 2)
    )
    # The end of the good archive, which points to the directory of the bad one.
    both = tmp_path / 'both.pth'
    end = bytearray(good[-22:])
    end[16:20] = bad[-6:-2]
    both.write_bytes(bad[:-22] + good[:-22] + end)
    with pytest.raises(ValueError, match='two directories'):
        checkpoint.read(both)
    with pytest.raises(ValueError, match='two directories'):
        checkpoint.verify(both)


def test_end_of_a_large_archive_that_torch_would_not_take_is_refused(tmp_path):
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(4) + b's')
    content, end = path.read_bytes()[:-22], path.read_bytes()[-22:]
    count, size, offset = struct.unpack_from('<HII', end, 10)
    numbers = struct.pack('<Q2H2I4Q', 44, 45, 45, 0, 0, count, count, size, offset)
    # zipfile takes the end before this record, torch the one that it points to: in the comment, and without its mark.
    locator = struct.pack('<4sIQI', b'PK\6\7', 0, len(content) + 60 + 16 + 22, 1)
    end = end[:16] + struct.pack('<IH', 2**32 - 1, 56)
    path.write_bytes(content + b'PK\6\6' + numbers + locator + end + b'none' + numbers)
    with pytest.raises(ValueError, match='two directories'):
        checkpoint.verify(path)


def test_archive_with_a_comment_is_read(tmp_path):
    path = write(tmp_path / 'a.pth', b'}' + text('w') + tensor(4) + b's')
    with zipfile.ZipFile(path, 'a') as archive:
        archive.comment = b'who made it'
    assert torch.equal(checkpoint.read(path)['state_dict']['w'], torch.load(path)['state_dict']['w'])
    checkpoint.verify(path)
    path.write_bytes(path.read_bytes() + b'more')
    with pytest.raises(ValueError, match='does not end with its directory'):
        checkpoint.read(path)


def test_array_without_content_counts_as_the_list_that_it_makes(tmp_path):
    torch.save(dict(meta=dict(a=np.zeros((20000, 20000, 0))), state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='far more than its size'):
        checkpoint.read(tmp_path / 'a.pth')


def test_long_list_of_numbers_is_read(tmp_path):
    content = dict(state_dict={}, meta=dict(momenta=[1 / (step + 2) for step in range(600_000)]))
    torch.save(content, tmp_path / 'long.pth')
    assert len(checkpoint.read(tmp_path / 'long.pth')['meta']['momenta']) == 600_000
