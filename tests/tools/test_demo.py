import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from mmyolo_ema import checkpoint
from tests.helpers import ROOT, load_tool


@pytest.mark.slow
def test_demo_trains_a_detector_and_its_file_gives_what_was_measured(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'tools' / 'demo.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'The file gives what was measured in training, in every digit.' in done.stdout
    rows = [line for line in done.stdout.splitlines() if 'in training' in line]
    map_50 = float(rows[0].split('|')[3])
    assert map_50 > 0.8
    assert len(done.stdout.splitlines()) < 40
    assert [line.split(':')[0] for line in done.stdout.splitlines() if 'averaged,' in line] == [
        f'  epoch {epoch} of 24' for epoch in (6, 12, 18, 24)
    ]
    folder = next((tmp_path / 'work_dirs').iterdir())
    assert 'Epoch(train) [24][20/20]' in (folder / 'log.txt').read_text()
    assert matplotlib.image.imread(folder / 'detections.png').shape[0] > 500
    assert matplotlib.image.imread(folder / 'train' / 'ema_curves.png').shape[1] > 1000
    saved = checkpoint.read(folder / 'train' / 'epoch_24.pth')
    assert saved['ema_state_dict']['steps'] == 480


def test_mismatch_fails_the_demo(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    demo = load_tool('demo')
    metrics = dict.fromkeys(demo.METRICS, 0.5)
    monkeypatch.setattr(demo, 'run', lambda *args, **kwargs: None)
    monkeypatch.setattr(demo, 'last_checkpoint', lambda work_dir: 'epoch_24.pth')
    monkeypatch.setattr(demo, 'held_out_detections', lambda path: [])
    monkeypatch.setattr(demo, 'draw_detections', lambda *args: None)
    monkeypatch.setattr(demo, 'metrics_in_training', lambda work_dir, suffix: metrics)
    monkeypatch.setattr(demo, 'metrics_in_test', lambda work_dir: {**metrics, demo.METRICS[0]: 0.501})
    monkeypatch.setattr(sys, 'argv', ['demo.py'])
    with pytest.raises(SystemExit) as stopped:
        demo.main()
    assert stopped.value.code == 2
    assert 'the file does not give what was measured in training' in capsys.readouterr().err


def test_demo_says_why_a_tool_failed(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'demo.py', '--cfg-options', 'custom_hooks.0.momentun=1'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith('error: tools/train.py failed: error: the config cannot be trained')
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('count', [1, 4, 5])
def test_boxes_are_drawn_over_each_image(figures, tmp_path, count):
    picture = load_tool('demo_picture')
    box = np.array([[2.0, 2.0, 10.0, 10.0]])
    image = np.zeros((16, 16), np.uint8)
    picture.draw_detections([picture.Detections(image, box, box + 1)] * count, 'title', tmp_path / 'both.png')
    assert (tmp_path / 'both.png').exists()
    drawn = [axis for axis in figures[0].axes if axis.images]
    assert len(drawn) == count
    for axis in drawn:
        assert [patch.get_bbox().extents.tolist() for patch in axis.patches] == [[2, 2, 10, 10], [3, 3, 11, 11]]
