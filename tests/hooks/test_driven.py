"""The hook where no MMEngine runner leads it in the usual order: by hand, and by a runner of strategies."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import LOOPS, MODELS
from mmengine.runner import FlexibleRunner, Runner, ValLoop

from mmyolo_ema import EMAHook, checkpoint
from mmyolo_ema._upstream import start_of
from mmyolo_ema.hooks.loading_errors import share_loading_errors
from tests.helpers import assert_equal, copy_of
from tests.hooks.toy import average_of, toy_hook

Toy = MODELS.get('Toy')


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_average_is_there_after_before_run_by_hand(toy):
    runner = toy(hook=dict(type='mmyolo_ema.EMAHook'))
    hook = average_of(runner)
    hook.before_run(runner)
    assert isinstance(hook.ema_model, ExponentialMovingAverage)
    assert hook.src_model is runner.model


def test_training_can_begin_without_before_run(toy):
    runner = toy(hook=dict(type='mmyolo_ema.EMAHook', begin_epoch=3))
    with pytest.raises(AssertionError, match=r'self\.begin_epoch should be smaller'):
        average_of(runner).before_train(runner)
    runner = toy(hook=dict(type='mmyolo_ema.EMAHook', begin_epoch=2))
    average_of(runner).before_train(runner)
    assert same(average_of(runner).ema_model.module, runner.model)


def test_updates_by_hand_follow_the_formula(toy):
    runner = toy()
    hook = average_of(runner)
    hook.before_run(runner)
    hook.before_train(runner)
    randomise(runner.model)
    hook.after_train_iter(runner, 1)
    assert same(hook.ema_model.module, runner.model)
    first = runner.model.out.weight.detach().clone()
    runner.train_loop._epoch = 1
    randomise(runner.model)
    hook.after_train_iter(runner, 1)
    momentum = hook.ema_model.momentum_at(1)
    torch.testing.assert_close(hook.ema_model.module.out.weight, first.lerp(runner.model.out.weight, momentum))


def test_checkpoints_are_saved_and_loaded_by_hand(toy):
    runner, hook = toy(), EMAHook()
    hook.before_run(runner)
    hook.before_train(runner)
    saved = dict(state_dict=dict(runner.model.state_dict()))
    hook.before_save_checkpoint(runner, saved)
    assert saved['ema_state_dict']['steps'] == 0
    assert torch.equal(saved['ema_state_dict']['module.out.bias'], saved['state_dict']['out.bias'])
    loaded = Toy().state_dict()
    for content in (dict(state_dict=loaded), dict(state_dict=loaded, ema_state_dict=Toy().state_dict())):
        randomise(hook.ema_model.module)
        hook.after_load_checkpoint(runner, content)
        assert torch.equal(hook.ema_model.module.out.weight, loaded['out.weight'])


def test_validation_by_hand_has_the_averaged_weights_in_the_model(toy):
    runner = toy()
    runner.train()
    hook = average_of(runner)
    randomise(runner.model)
    raw, averaged = copy_of(runner.model), copy_of(hook.ema_model.module)
    for kind in ('val', 'test'):
        getattr(hook, f'before_{kind}_epoch')(runner)
        assert_equal(copy_of(runner.model), averaged)
        getattr(hook, f'after_{kind}_epoch')(runner)
        assert_equal(copy_of(runner.model), raw)


def average_in(runner):
    model = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_files(tmp_path, assert_equal, *names):
    one, other = (checkpoint.read(tmp_path / name / 'epoch_4.pth') for name in names)
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(one[part], other[part], part)


FOUR = dict(train_cfg=dict(by_epoch=True, max_epochs=4))


def test_run_that_was_resumed_before_its_training_goes_on(toy, tmp_path):
    toy('whole', **FOUR).train()
    runner = toy('resumed', **FOUR)
    runner.resume(str(tmp_path / 'whole' / 'epoch_2.pth'))
    runner.train()
    assert_same_files(tmp_path, assert_equal, 'whole', 'resumed')


class LateLoops(Runner):
    """Builds its loops after the hooks have heard that a run begins."""

    def train(self):
        self.call_hook('before_run')
        return super().train()


def test_runner_that_builds_its_loops_later_resumes(toy, tmp_path):
    toy('whole', **FOUR).train()
    half = dict(load_from=str(tmp_path / 'whole' / 'epoch_2.pth'), resume=True)
    toy('resumed', kind=LateLoops, **half, **FOUR).train()
    assert_same_files(tmp_path, assert_equal, 'whole', 'resumed')


def test_checkpoint_that_is_resumed_from_in_a_validation_leaves_the_average_to_itself(toy):

    class GoBackAfterValidation(Hook):
        priority, states = 'VERY_HIGH', {}

        def after_val_epoch(self, runner, metrics=None):
            if runner.epoch == 2 and not self.states:
                runner.resume(f'{runner.work_dir}/epoch_1.pth')
                self.states.update(average=average_in(runner))

        def before_train_epoch(self, runner):
            if self.states:
                self.states.setdefault('raw', copy_of(runner.model))

    runner, hook = toy(), GoBackAfterValidation()
    runner.register_hook(hook)
    runner.train()
    content = checkpoint.read(f'{runner.work_dir}/epoch_1.pth')
    assert_equal(hook.states['raw'], checkpoint.raw_weights(content))
    for name, value in content['state_dict'].items():
        assert torch.equal(hook.states['average'][f'module.{name}'], value), name


class GoBack(Hook):
    """Loads an earlier checkpoint at the start of the fourth epoch, once."""

    def __init__(self, load):
        self.load = load

    def before_train_epoch(self, runner):
        if runner.epoch == 3 and self.load:
            load, self.load = self.load, None
            load(runner, f'{runner.work_dir}/epoch_2.pth')
            self.average = average_in(runner)


def test_checkpoint_that_a_hook_resumes_from_gives_both_kinds_back(toy):
    runner, seen = toy(**FOUR), {}

    def resume(runner, path):
        runner.resume(path)
        seen['raw'] = {name: value.clone() for name, value in runner.model.state_dict().items()}

    hook = GoBack(resume)
    runner.register_hook(hook)
    runner.train()
    content = checkpoint.read(f'{runner.work_dir}/epoch_2.pth')
    assert hook.average['steps'] == content['ema_state_dict']['steps'] == 12
    for name, value in content['state_dict'].items():
        assert torch.equal(hook.average[f'module.{name}'], value), name
    assert_equal(seen['raw'], checkpoint.raw_weights(content))


def test_weights_that_a_hook_loads_in_a_resumed_run_are_only_started_from(toy, tmp_path):
    toy(**FOUR).train()
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'epoch_1.pth'))
    runner = toy(resume=True, **FOUR)
    hook = GoBack(lambda runner, path: runner.load_checkpoint(path))
    runner.register_hook(hook)
    runner.train()
    assert hook.average['steps'] == 0


@LOOPS.register_module(force=True)
class SilentLoop(ValLoop):
    """Tells its metrics to the hooks only, as MMDetection's TeacherStudentValLoop does."""

    def run(self):
        super().run()


def test_metrics_are_those_that_hooks_are_told(toy, tmp_path):
    seen = {}

    class Remember(Hook):
        priority = 'LOWEST'

        def after_val_epoch(self, runner, metrics=None):
            seen.setdefault(runner.experiment_name, []).append(dict(metrics))

    for name, loop in (('usual', {}), ('silent', dict(type='SilentLoop'))):
        saving = dict(type='CheckpointHook', save_best='mean_origin', rule='less')
        runner = toy(name, hook=toy_hook(evaluate_on_origin=True), val_cfg=loop, default_hooks=dict(checkpoint=saving))
        runner.register_hook(Remember())
        runner.train()
    one, other = seen.values()
    assert one == other
    assert all(metrics['mean'] != metrics['mean_origin'] for metrics in other)
    best = min(range(2), key=lambda epoch: other[epoch]['mean_origin'])
    assert (tmp_path / 'silent' / f'best_mean_origin_epoch_{best + 1}.pth').is_file()


def test_loop_is_wrapped_once(toy):
    runner = toy()
    runner.train()
    run = runner.val_loop.run
    runner.val()
    runner.test()
    assert runner.val_loop.run is run


def test_file_of_another_process_than_the_main_one_has_the_average_too(toy, monkeypatch):
    runner, content = toy(), {}
    runner.train()
    monkeypatch.setattr('mmyolo_ema.hooks.ema_hook.is_main_process', lambda: False)
    average_of(runner).before_save_checkpoint(runner, content)
    assert_equal(checkpoint.averaged_weights(content), average_of(runner).ema_model.module.state_dict())


class Answering(Runner):
    """Loads by a method with an argument and a result."""

    def load_or_resume(self, answer='usual'):
        super().load_or_resume()
        return answer


def test_loading_of_a_runner_takes_and_returns_what_it_did(toy):
    runner = toy(kind=Answering)
    share_loading_errors(runner)
    load = runner.load_or_resume
    assert [load('first'), load(answer='again'), runner.load_or_resume()] == ['first', 'again', 'usual']


def flexible(toy, name, **options):
    return toy(name, kind=FlexibleRunner, strategy=dict(type='SingleDeviceStrategy'), **FOUR, **options)


def test_runner_of_strategies_trains_and_resumes_as_the_usual_one(toy, tmp_path):
    hook = toy_hook(evaluate_on_origin=True)
    toy('usual', hook=hook, **FOUR).train()
    runner = flexible(toy, 'flexible', hook=hook)
    runner.train()
    validated = runner.message_hub.get_scalar('val/mean').current()
    assert runner.val()['mean'] == runner.test()['mean'] == validated
    flexible(toy, 'resumed', hook=hook, load_from=str(tmp_path / 'flexible' / 'epoch_2.pth'), resume=True).train()
    assert_same_files(tmp_path, assert_equal, 'usual', 'flexible')
    assert_same_files(tmp_path, assert_equal, 'flexible', 'resumed')
    tester = flexible(toy, 'test', load_from=str(tmp_path / 'flexible' / 'epoch_4.pth'))
    assert tester.test()['mean'] == validated


@pytest.mark.parametrize('make', [flexible, lambda toy, name, **options: toy(name, **FOUR, **options)])
def test_program_in_a_checkpoint_is_not_run_by_a_resumption(toy, tmp_path, make):
    make(toy, 'first').train()
    path, harm = tmp_path / 'first' / 'epoch_2.pth', tmp_path / 'harm'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = f'import os\nos.mkdir({str(harm)!r})'
    torch.save(content, path)
    runner = make(toy, 'resumed', load_from=str(path), resume=True)
    with pytest.raises(ValueError, match=r"holds a text under meta\['config'\], which MMEngine would run"):
        runner.train()
    assert not harm.exists()


def test_runner_of_strategies_says_what_it_resumes_from(toy):
    address = 'https://example.org/a.pth'
    assert start_of(flexible(toy, 'named', resume=address)) == start_of(toy(load_from=address)) == address


def test_runner_of_strategies_starts_from_averaged_weights(toy, tmp_path, messages):
    toy().train()
    runner = flexible(toy, 'next', load_from=str(tmp_path / 'run' / 'epoch_2.pth'))
    runner.train()
    assert average_of(runner).ema_model.steps == 24
    assert any('starts anew from the averaged weights of 12 updates' in str(message) for message in messages)


def test_runner_of_strategies_goes_on_with_a_second_average(toy, tmp_path):
    hooks = [toy_hook(), dict(type='mmyolo_ema.SnapshotHook', interval='50%', second_horizon=5)]
    flexible(toy, 'whole', custom_hooks=hooks).train()
    flexible(toy, 'resumed', custom_hooks=hooks, load_from=str(tmp_path / 'whole' / 'epoch_2.pth'), resume=True).train()
    one, other = (tmp_path / name / 'snapshots' for name in ('whole', 'resumed'))
    assert [path.name for path in sorted(one.iterdir())] == ['update_00000012.pth', 'update_00000024.pth']
    assert [path.name for path in other.iterdir()] == ['update_00000024.pth']
    name = 'update_00000024.pth'
    assert_equal(*(checkpoint.weights_of(checkpoint.read(folder / name), 'second') for folder in (one, other)))
