"""Train a detector with MMEngine's runner: the command ``mmyolo-ema train``."""

from _start import start

if __name__ == '__main__':
    start('train')
