"""Tell what momentum and gamma mean for a run: the command ``mmyolo-ema schedule``."""

from _start import start

if __name__ == '__main__':
    start('schedule')
