"""Turns SIGINT, SIGTERM and SIGHUP into one exception, so that every `with` block cleans up.

Children that must outlive a Ctrl-C until they are stopped in order are started in their own
session; the terminal's signal then reaches this program alone.
"""

import contextlib
import signal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_hold_depth = 0
_pending = None


class Interrupted(BaseException):
    """A signal asked this program to end. A BaseException: no `except Exception` may eat it."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


def raise_on_signals():
    """Makes the first such signal raise Interrupted; later ones are ignored.

    Impatient second signals would otherwise break the clean-up that the first one started.
    """

    def handle(number, _frame):
        global _pending
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if _hold_depth:
            _pending = number
        else:
            raise Interrupted(number)

    for each in _SIGNALS:
        signal.signal(each, handle)


@contextlib.contextmanager
def held_back():
    """Delays Interrupted to the end of the block: for steps that must be done whole.

    Not done with a signal mask: a child started inside the block would inherit it.
    """
    global _hold_depth, _pending
    _hold_depth += 1
    try:
        yield
    finally:
        _hold_depth -= 1
    if _pending is not None and not _hold_depth:
        number, _pending = _pending, None
        raise Interrupted(number)
