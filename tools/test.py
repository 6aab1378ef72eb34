"""Test a detector: the averaged weights of a checkpoint, or the raw ones: the command ``mmyolo-ema test``."""

from _start import start

if __name__ == '__main__':
    start('test')
