import logging

import pytest

from mmyolo_ema.printing import escape_log


@pytest.fixture
def _factory():
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures('_factory')
def test_log_has_escapes_for_what_a_terminal_would_obey(caplog):
    escape_log()
    logging.getLogger('any').warning('of %s:\n\t%d', 'a\x1b[2J', 5)
    assert caplog.messages == ['of a\\x1b[2J:\n\t5']
