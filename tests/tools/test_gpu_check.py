"""The command that proves and measures on a GPU, as far as a CPU goes."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, load_tool

pytestmark = pytest.mark.any_family


@pytest.fixture
def gpu_check(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    tool = load_tool('gpu_check')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    return tool


def check(gpu_check, monkeypatch, parts, device='auto', gpu=False):
    """Runs a check of the given parts and returns what it wrote, or None, and whether it failed."""
    card = 'A GPU' if gpu else ''
    monkeypatch.setattr(gpu_check, 'parts', lambda folder, gpu: parts)
    monkeypatch.setattr(gpu_check, 'machine', lambda python: dict(card=card, torch='2', driver='', cores=1, date=''))
    monkeypatch.setattr(gpu_check, 'set_up', lambda args, device: device != 'cuda')
    monkeypatch.setattr(gpu_check, 'has_cuda_operators', lambda args: False)
    monkeypatch.setattr(
        gpu_check, 'run_part', lambda python, part, gpu, run=gpu_check.run_part: run(Path(sys.executable), part, gpu)
    )
    args = argparse.Namespace(stack='onedl', folder='.venv', device=device, torch='pinned', wheels=None)
    failed = False
    try:
        gpu_check.check(args)
    except SystemExit:
        failed = True
    written = list(gpu_check.ROOT.rglob('gpu_check.json'))
    return json.loads(written[0].read_text()) if written else None, failed


def test_part_that_fails_or_hangs_leaves_the_others(gpu_check, monkeypatch):
    parts = {
        'tests': gpu_check.Part(['-c', 'print("reason"); exit(3)'], 60),
        'step': gpu_check.Part(['-c', 'import time; print("begun", flush=True); time.sleep(60)'], 1),
        'demo': gpu_check.Part(['-c', 'print("done")'], 60),
    }
    content, failed = check(gpu_check, monkeypatch, parts)
    assert failed
    assert [part['ended'] for part in content['parts'].values()] == ['failed with status 3', 'ended after 1 s', 'ok']
    assert [part['said'] for part in content['parts'].values()] == [['reason'], ['begun'], ['done']]


def test_numbers_of_a_part_are_taken_over(gpu_check, monkeypatch, tmp_path):
    file = tmp_path / 'step.json'
    program = f'open({str(file)!r}, "w").write("[1, 2]")'
    content, failed = check(gpu_check, monkeypatch, {'step': gpu_check.Part(['-c', program], 60, file)})
    assert not failed
    assert content['parts']['step']['results'] == [1, 2]


def test_demo_is_left_out_on_a_gpu_without_operators(gpu_check, monkeypatch):
    content, failed = check(gpu_check, monkeypatch, {'demo': gpu_check.Part(['-c', ''], 60)}, gpu=True)
    assert failed
    assert content['parts']['demo']['ended'] == 'left out: mmcv has no working CUDA operators'


def test_gpu_that_is_asked_for_and_not_there_is_refused(gpu_check, monkeypatch):
    assert check(gpu_check, monkeypatch, {}, device='cuda') == (None, True)


def timing(median):
    return dict(lower=median, median=median, upper=median)


@pytest.fixture
def content():
    step = dict(host=timing(4e-4), gpu=timing(1e-4), check=None, swap=None)
    costs = {
        'mmyolo_ema': step,
        'mmdet': dict(step, host=timing(9e-3), gpu=timing(1.1e-3)),
        'limit': dict(step, gpu=timing(9e-5)),
    }
    steps = [dict(detector=name, update_buffers=True, costs=costs) for name in ('rtmdet-tiny', 'rtmdet-l')]
    hook = dict(
        detector='rtmdet-l',
        batch_size=8,
        image_size=640,
        step={'no hook': timing(0.1), 'mmyolo_ema': timing(0.1006)},
        added={'mmyolo_ema': timing(6e-4)},
    )
    part = dict(ended='ok', seconds=9.0, said=[])
    parts = dict(
        tests=dict(part, said=['21 passed in 9 s']),
        step=dict(part, results=dict(results=steps)),
        hook=dict(part, results=dict(results=[hook])),
    )
    return dict(
        card='A GPU', driver='1', torch='2', cores=16, date='2026-11-27', seconds=99.0, set_up_seconds=9.0, parts=parts
    )


def test_chapter_tells_which_aims_were_met(content):
    chapter = load_tool('gpu_chapter')
    page = f'before\n{chapter.BEGIN}\nold\n{chapter.END}\nafter\n'
    written = chapter.with_chapter(page, content)
    assert written.startswith('before\n')
    assert written.endswith('\nafter\n')
    assert 'old' not in written
    assert '| tests | ok: 21 passed in 9 s | 9 |' in written
    assert '| rtmdet-l, update_buffers=True: GPU time at most 1.25 times the limit | 1.11 | met |' in written
    assert "20 times faster than MMDetection's class, host and GPU together | 20.2 | met |" in written
    assert '| rtmdet-l, 8 images: the hook adds at most 0.5 % to a step | 0.60% | **missed** |' in written
    assert chapter.with_chapter(written, content) == written


def test_check_without_a_gpu_or_page_without_a_place_is_refused(content):
    chapter = load_tool('gpu_chapter')
    with pytest.raises(ValueError, match='without a GPU'):
        chapter.with_chapter(f'{chapter.BEGIN}{chapter.END}', dict(content, card=''))
    with pytest.raises(ValueError, match='no place for the chapter'):
        chapter.with_chapter('a page', content)


@pytest.mark.parametrize('text', [None, 'no JSON', '{}', '[]'])
def test_file_without_numbers_for_the_chapter_is_refused(refused, tmp_path, monkeypatch, text):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    path = tmp_path / 'numbers.json'
    if text is not None:
        path.write_text(text)
    assert f'{path} holds no numbers for the chapter' in refused('gpu_check', '--chapter', path)
