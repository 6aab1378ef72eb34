"""Tell what a checkpoint holds, and export its weights: the command ``mmyolo-ema checkpoint``."""

from _start import start

if __name__ == '__main__':
    start('checkpoint')
