import pytest
from mmengine.registry import LOOPS
from mmengine.runner import ValLoop

from mmyolo_ema import checkpoint
from mmyolo_ema.posthoc.evaluation import Evaluation
from tests.helpers import forget_runs


@LOOPS.register_module(force=True)
class UnreturningLoop(ValLoop):
    """Tells its metrics to the hooks only, as MMDetection's TeacherStudentValLoop does."""

    def run(self):
        super().run()


def test_metrics_are_those_that_hooks_are_told(trained, demo_config, tmp_path):
    weights, measured = checkpoint.read(trained)['state_dict'], []
    for name, loop in (('usual', 'ValLoop'), ('silent', 'UnreturningLoop')):
        forget_runs()
        cfg = demo_config(name, **{'val_cfg.type': loop, 'model.test_cfg.score_thr': 0.0})
        measured.append(Evaluation(cfg, tmp_path / name).measure(weights, 'ema'))
    assert measured[0] == measured[1]
    assert 'coco/bbox_mAP' in measured[0]


def test_folder_with_links_is_refused(demo_config, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'ema.bbox.json').symlink_to(tmp_path / 'mine')
    with pytest.raises(ValueError, match=r'out/ema\.bbox\.json is a link, and would be written through'):
        Evaluation(demo_config(), tmp_path / 'out')
