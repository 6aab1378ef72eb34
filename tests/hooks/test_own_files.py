"""A checkpoint that a run resumes from cannot name what is deleted."""

import pytest
import torch
from mmengine.hooks import CheckpointHook

from mmyolo_ema import checkpoint
from mmyolo_ema.hooks.own_files import OwnFilesOnly

SAVING = dict(type='CheckpointHook', interval=1, save_best='mean', rule='greater', max_keep_ckpts=1)


@pytest.mark.parametrize('hook', ['ours', 'none'])
def test_files_that_a_checkpoint_names_stay(toy, tmp_path, hook):
    options = dict(default_hooks=dict(checkpoint=SAVING), **({} if hook == 'ours' else dict(custom_hooks=[])))
    first = toy('first', **options)
    first.train()
    content = checkpoint.read(tmp_path / 'first' / 'epoch_2.pth')
    precious = tmp_path / 'precious'
    precious.mkdir()
    (precious / 'file').write_text('mine')
    info = content['message_hub']['runtime_info']
    info.update(best_ckpt=str(precious), best_score=-1e9, keep_ckpt_ids=[7, 2])
    content['message_hub']['resumed_keys'].update(best_ckpt=True, best_score=True, keep_ckpt_ids=True)
    torch.save(content, tmp_path / 'stranger.pth')
    second = toy(
        'second',
        resume=True,
        load_from=str(tmp_path / 'stranger.pth'),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        **options,
    )
    (tmp_path / 'second').mkdir(exist_ok=True)
    (tmp_path / 'second' / 'epoch_7.pth').write_text('mine')
    if hook == 'none':
        second.register_hook(OwnFilesOnly())
    second.train()
    assert (precious / 'file').read_text() == 'mine'
    assert (tmp_path / 'second' / 'epoch_7.pth').read_text() == 'mine'
    saver = next(hook for hook in second.hooks if isinstance(hook, CheckpointHook))
    assert saver.best_ckpt_path.startswith(str(tmp_path / 'second'))


def test_earlier_best_of_the_run_is_replaced(toy, tmp_path):
    options = dict(default_hooks=dict(checkpoint=dict(SAVING, rule='less')))
    toy('run', **options).train()
    before = list((tmp_path / 'run').glob('best_*'))
    half = dict(resume=True, load_from=str(tmp_path / 'run' / 'epoch_2.pth'))
    toy('run', train_cfg=dict(by_epoch=True, max_epochs=4), **half, **options).train()
    after = list((tmp_path / 'run').glob('best_*'))
    assert len(before) == len(after) == 1
    assert before != after
