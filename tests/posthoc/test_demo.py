import shutil

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmyolo_ema.checkpoint import read, weights_of
from mmyolo_ema.posthoc import read_run
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.evaluation import Evaluation
from tests.helpers import ROOT


@pytest.mark.slow
def test_half_the_horizon_detects_as_the_average_that_was_tracked(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py')
    kept = dict(type='mmyolo_ema.SnapshotHook', interval=4, second_horizon=10)
    cfg.update(work_dir=str(tmp_path / 'run'), custom_hooks=[cfg.custom_hooks[0], kept], log_level='WARNING')
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    Runner.from_cfg(cfg).train()
    run = read_run(tmp_path / 'run')
    # Without the second averages, which would be the answer, and without the raw weights.
    alone = run._replace(files=[file._replace(kinds=('ema',)) for file in run.files if 'ema' in file.kinds])
    half = alone.average(10)
    (built,) = build([half])
    evaluation = Evaluation(cfg, tmp_path / 'evaluation')

    def score(weights, name):
        measured = evaluation.measure(weights, name)['coco/bbox_mAP']
        exact, matched = evaluation.exact(name, 'coco/bbox_mAP', measured)
        assert matched is not None
        return exact

    tracked = score(weights_of(read(run.files[-1].path), 'second'), 'tracked')
    assert 0.01 < half.error < 0.1
    assert tracked > 0.4
    assert score(built, 'built') == pytest.approx(tracked, abs=0.002)
    shutil.rmtree(tmp_path / 'run')  # 2 GB
