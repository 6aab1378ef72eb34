import pytest

from mmyolo_ema.schedules import in_updates


@pytest.mark.parametrize(
    ('text', 'updates'),
    [
        ('500', 500),
        ('1e3', 1000),
        ('500 updates', 500),
        ('4%', 40),
        ('0.5 %', 5),
        ('2epochs', 40),
        ('1 epoch', 20),
        ('.5EPOCHS', 10),
    ],
)
def test_length_is_read_in_its_unit(text, updates):
    assert in_updates(text, updates=1000, updates_per_epoch=20) == updates


@pytest.mark.parametrize('text', ['', 'old', '-4%', '0', '4 percent', '1.2.3', '.', '%', '1e999', 'nan', '0.00%'])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match='a length of training is written as'):
        in_updates(text, updates=1000)


def test_share_without_its_sign_is_refused():
    with pytest.raises(ValueError, match=r"'0\.04' is less than one update; a share of the run is written as '4%'"):
        in_updates('0.04', updates=1000)


def test_epochs_of_unknown_length_are_refused():
    with pytest.raises(ValueError, match="'2epochs' needs the number of updates in an epoch"):
        in_updates('2epochs', updates=1000)
