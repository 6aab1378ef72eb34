"""What each command takes, apart from what it does: so that ``--help`` waits for no import of torch or MMDetection."""

import argparse
from functools import partial
from pathlib import Path

from mmyolo_ema.cli.arguments import (
    OneLineParser,
    Parser,
    add_cfg_options,
    add_command,
    add_run_flags,
    add_weights,
    count,
)

HORIZON = (
    "horizon 1 / momentum in updates, epochs or percent of the run: '500', '2epochs', '4%%'; or last:LENGTH, "
    'the plain mean of the last updates, or power:DEVIATION'
)


def train() -> argparse.Namespace:
    """Train a detector with MMEngine's runner.

    Example:
        python tools/train.py configs/demo/rtmdet_nuclei.py
        python tools/train.py configs/rtmdet/rtmdet_s_ema_8xb32-300e_coco.py --amp    # COCO in data/coco, and a GPU
    """
    parser = Parser(train.__doc__)
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision, on a GPU')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='go on from a checkpoint, by default the latest in the work directory',
    )
    return parser.parse_args()


def test() -> argparse.Namespace:
    """Test a detector: the averaged weights of a checkpoint, the raw ones, or those of a further average.

    Example:
        python tools/test.py CONFIG epoch_300.pth
        python tools/test.py CONFIG epoch_300.pth --weights raw
    """
    parser = Parser(test.__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    add_weights(parser)
    parser.add_argument('--out', help='write the predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir', help="draw the predictions into this folder (MMDetection's hook: in the run's own)"
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between two shown images (default: 2)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def schedule() -> argparse.Namespace:
    """Tell what momentum and gamma mean for a run: what the average holds at each point of it, and what would suit it.

    Examples:
        python tools/ema_schedule.py CONFIG                                # the config's own run
        python tools/ema_schedule.py CONFIG --gpus 8 --plot schedule.png
        python tools/ema_schedule.py CONFIG --mean-age 4%                  # or 500 (updates), or 2epochs
        python tools/ema_schedule.py CONFIG --scale-from-batch 256         # momentum was meant for 256 images a step
        python tools/ema_schedule.py --momentum 0.0002 0.01 --gamma 2000 100 --iters 2000
    """
    parser = OneLineParser(schedule.__doc__)
    parser.add_argument('config', nargs='?', help='config file of a training with an EMAHook')
    parser.add_argument(
        '--momentum',
        type=fraction,
        nargs='+',
        help="momentum (1 - decay) to look at, beside the config's if there is one; several make several settings",
    )
    parser.add_argument(
        '--gamma',
        type=positive,
        nargs='+',
        help="gamma for each --momentum, or one for all (default: the config's, or 2000)",
    )
    parser.add_argument(
        '--mean-age',
        metavar='AGE',
        help="suggest momentum and gamma for this mean age at the end: '4%%' of the run, '500' updates or '2epochs'",
    )
    parser.add_argument(
        '--scale-from-batch',
        type=count,
        metavar='IMAGES',
        help='suggest momentum and gamma that do '
        "with this run's batches what the config's do with so many images in an update",
    )
    parser.add_argument(
        '--all',
        action='store_true',
        help='show momentum, horizon and effective sample size too, how '
        'the average came there, and the recipes published for COCO',
    )
    parser.add_argument(
        '--plot',
        type=Path,
        metavar='F.png',
        help='draw the momentum over the run, and the weight of each past update in the final average',
    )
    add_run_flags(parser)
    args = parser.parse_args()
    if args.config is None and (args.momentum is None or args.iters is None):
        parser.error('name a config, or pass --momentum and --iters')
    if args.config is None and args.scale_from_batch:
        parser.error('--scale-from-batch needs a config, which tells the batch size of the run')
    if args.gamma and not args.momentum:
        parser.error('--gamma goes with --momentum')
    if args.gamma and len(args.gamma) not in (1, len(args.momentum)):
        parser.error(
            f'--gamma takes one number, or one for each of {len(args.momentum)} --momentum, but got {len(args.gamma)}'
        )
    return args


def checkpoint() -> argparse.Namespace:
    """Tell what a checkpoint holds, and export one set of its weights.

    Examples:
        python tools/ema_checkpoint.py inspect work_dirs/run/epoch_*.pth
        python tools/ema_checkpoint.py extract epoch_300.pth --weights raw -o raw.pth
        python tools/ema_checkpoint.py publish epoch_300.pth -o rtmdet_s --dtype float16
        python tools/ema_checkpoint.py compare epoch_290.pth epoch_300.pth
    """
    parser = OneLineParser(checkpoint.__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    add = partial(add_command, commands)
    inspected = add(
        'inspect',
        'tell what files hold, how far average and raw weights are apart, and what is wrong',
        'inspect work_dirs/run/epoch_*.pth',
    )
    inspected.add_argument(
        'files',
        nargs='+',
        type=Path,
        metavar='FILE',
        help='checkpoint, .safetensors file, or a folder with checkpoints',
    )
    inspected.add_argument('--json', action='store_true', help='print a list with an object for each file')

    extracted = add(
        'extract',
        'write one set of weights to a file of its own, which every loader opens',
        'extract epoch_300.pth --weights raw -o raw.safetensors',
    )
    extracted.add_argument('file', type=Path, metavar='FILE', help='checkpoint')
    add_weights(extracted)
    extracted.add_argument('-o', '--out', type=Path, required=True, help='file to write: .pth, .pt or .safetensors')

    published = add(
        'publish',
        'write one set of weights to STEM-12345678.pth, named by the hash of its content',
        'publish epoch_300.pth -o rtmdet_s --dtype float16',
    )
    published.add_argument('file', type=Path, metavar='FILE', help='checkpoint')
    add_weights(published)
    published.add_argument('-o', '--out', required=True, metavar='STEM', help='folder and beginning of the name')
    published.add_argument(
        '--dtype',
        choices=['float16', 'bfloat16', 'float32'],
        help="precision of the weights; the running statistics of BatchNorm keep theirs (default: the file's)",
    )

    compared = add(
        'compare',
        'tell whether two files hold the same weights; exit status 0 if they do, 1 if not',
        'compare epoch_300.pth rtmdet_s-12345678.pth',
    )
    compared.add_argument('one', type=Path, metavar='A', help='checkpoint, or .safetensors file')
    compared.add_argument('other', type=Path, metavar='B', help='checkpoint, or .safetensors file')
    add_weights(compared)
    return parser.parse_args()


def posthoc() -> argparse.Namespace:
    """Choose the horizon of the average after the training, from the checkpoints that a run left.

    Examples:
        python tools/posthoc_ema.py plan CONFIG                                                 # before the training
        python tools/posthoc_ema.py fit work_dirs/run --horizon 2epochs 500 4% last:10epochs    # how well would it go?
        python tools/posthoc_ema.py build work_dirs/run --horizon 2epochs -o half.pth           # make it
        python tools/posthoc_ema.py sweep work_dirs/run CONFIG                                  # which one is best?
    """
    parser = OneLineParser(posthoc.__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add_stored(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        command = add_command(commands, name, help_text, example)
        command.add_argument('work_dir', type=Path, metavar='WORK_DIR', help="folder with a run's checkpoints")
        return command

    def add_horizon(command: argparse.ArgumentParser, default: str = '') -> None:
        text = f'{HORIZON} (default: {default})' if default else HORIZON
        command.add_argument('--horizon', '--horizons', required=not default, nargs='+', metavar='H', help=text)

    planned = add_command(
        commands,
        'plan',
        'tell what can be made of the checkpoints that a config will keep, and what to keep for more',
        'plan configs/demo/rtmdet_nuclei.py',
    )
    planned.add_argument('config', help='config file of a training with an EMAHook')
    add_horizon(planned, "an eighth to eight times the run's")
    add_run_flags(planned)
    fitted = add_stored(
        'fit',
        'tell how well averages can be made of the checkpoints, without reading weights',
        'fit work_dirs/run --horizon 2epochs 500 4% last:10epochs',
    )
    add_horizon(fitted, "a quarter, half, twice and four times the run's")
    fitted.add_argument('--coefficients', action='store_true', help='show how they are made of the checkpoints')
    built = add_stored(
        'build',
        'make averages of the checkpoints, and write each to a checkpoint of its own',
        'build work_dirs/run --horizon 2epochs -o half.pth',
    )
    add_horizon(built)
    built.add_argument(
        '-o', '--out', type=Path, required=True, nargs='+', help='file to write, .pth; one for each --horizon'
    )
    built.add_argument(
        '--bn-batches',
        type=count,
        metavar='N',
        help='estimate the statistics of BatchNorm anew, on so '
        'many training batches of --config (default: average them too)',
    )
    built.add_argument('--config', help='config of the training, for --bn-batches')
    add_cfg_options(built)
    swept = add_stored(
        'sweep',
        "validate averages of many horizons, and tell whether the best is better than the run's own",
        'sweep work_dirs/run configs/demo/rtmdet_nuclei.py',
    )
    swept.add_argument('config', help='config with the model and its validation')
    add_horizon(swept, "an eighth to eight times the run's, and then around the best")
    swept.add_argument('--metric', help="metric to choose by (default: the config's save_best, or the first)")
    swept.add_argument(
        '--resamples',
        type=count,
        default=1000,
        help='how often images are drawn anew to tell chance from gain (default: 1000)',
    )
    add_cfg_options(swept)
    args = parser.parse_args()
    if args.command == 'build':
        if len(args.out) != len(args.horizon):
            parser.error(f'-o names {len(args.out)} files for {len(args.horizon)} --horizon')
        if (args.bn_batches is None) is not (args.config is None):
            parser.error('--bn-batches and --config go together')
    return args


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'must be above 0, but got {text}')
    return number


def fraction(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f'must be above 0 and below 1, but got {text}')
    return number
