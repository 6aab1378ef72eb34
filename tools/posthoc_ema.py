"""Choose the horizon of the average after the training: the command ``mmyolo-ema posthoc``."""

from _start import start

if __name__ == '__main__':
    start('posthoc')
