import io
import sys

from mmyolo_ema.cli import progress


def test_log_gets_lines_with_the_time_left(monkeypatch):
    monkeypatch.setattr(progress, '_PAUSE', 0)
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    assert list(progress.Bar(range(3))) == [0, 1, 2]
    lines = sys.stderr.getvalue().split('\n')
    assert '\r' not in sys.stderr.getvalue()
    assert any('2/3' in line and '<' in line for line in lines)


def test_short_work_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    assert list(progress.Bar(range(3))) == [0, 1, 2]
    assert sys.stderr.getvalue() == ''
