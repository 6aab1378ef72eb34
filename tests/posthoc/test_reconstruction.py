import pytest
import torch

from mmyolo_ema import posthoc
from mmyolo_ema.posthoc import Target, read_run
from mmyolo_ema.schedules import Ramp


@pytest.mark.parametrize(
    ('wanted', 'name'),
    [
        ('20', '20'),
        (20, '20'),
        (20.0, '20.0'),
        ('1epochs', '1epochs'),
        ('20%', '20%'),
        (Target('mine', Ramp(0.05, 5)), 'mine'),
    ],
)
def test_average_is_asked_for_by_text_number_or_target(counting, wanted, name):
    run = read_run(counting)
    average = run.average(wanted)
    assert average.target == Target(name, Ramp(0.05, 5))
    fit = posthoc.fit(run.snapshots(), Ramp(0.05, 5), 100)
    assert (average.error, average.worst.mean_age) == (fit.reconstruction_error, fit.mean_age)
    assert list(average.coefficients.values()) == fit.coefficients[fit.coefficients != 0].tolist()
    assert next(iter(average.coefficients)) == '4.pth ema'


@pytest.mark.parametrize('wanted', [None, 0, -3, float('nan'), True, '2 weeks'])
def test_other_forms_are_refused_with_their_value(counting, wanted):
    with pytest.raises(ValueError, match=str(wanted)):
        read_run(counting).average(wanted)


def test_several_averages_are_written_in_one_pass(counting, tmp_path):
    run, passes = read_run(counting), []
    averages = {tmp_path / 'out' / f'{horizon}.pth': run.average(horizon) for horizon in (20, 40)}
    posthoc.write(averages, progress=lambda files: passes.append(len(files)) or files)
    assert passes == [25]
    for path, average in averages.items():
        average.write(str(path.with_suffix('.alone.pth')))
        together, alone = torch.load(path), torch.load(path.with_suffix('.alone.pth'))
        assert together == alone
        assert together['state_dict']['w'].item() == pytest.approx(100 - average.worst.mean_age)
        assert together['meta']['mmyolo_ema']['posthoc']['error'] == average.error
    with pytest.raises(FileExistsError):
        average.write(path)


def test_what_cannot_be_written_is_refused(counting, tmp_path):
    run = read_run(counting)
    short = run.average('last:2')
    with pytest.raises(ValueError, match=r'cannot be made of these checkpoints: last:2 .* leave it out to write 20'):
        posthoc.write({tmp_path / 'a': short, tmp_path / 'b': run.average(20)})
    with pytest.raises(ValueError, match='bn_batches=3 needs the config of the training: pass cfg'):
        run.average(20).write(tmp_path / 'a', bn_batches=3)
    (counting / '4.pth').unlink()
    with pytest.raises(ValueError, match=r'several runs .*: 20 of .*100\.pth, 20 of'):
        posthoc.write({tmp_path / 'a': run.average(20), tmp_path / 'b': read_run(counting).average(20)})
    assert not (tmp_path / 'a').exists()
