"""The flags that commands share."""

import argparse
import os
import re
import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn, Optional, Union

from mmengine.config import DictAction

from mmyolo_ema.cli.ending import stop
from mmyolo_ema.schedules import MOST_UPDATES

#: What each launcher tells the processes that it starts.
SET_BY_LAUNCHER = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong arguments in one line; shows its description as written, with the command as it was called."""

    def __init__(self, description: Optional[str], **kwargs: Any) -> None:
        description = re.sub(r'python tools/\w+\.py', _called(), cleandoc(description or ''))
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        stop(f'{message} (see {self.prog} --help)')


class Parser(OneLineParser):
    """Parses the flags that MMDetection's train and test commands have in common."""

    def __init__(self, description: Optional[str]) -> None:
        super().__init__(description)
        self.add_argument('config', help='config file')
        self.add_argument(
            '--work-dir',
            help='folder for logs, results and checkpoints (default: '
            "the config's work_dir, or work_dirs/ and the config's name)",
        )
        add_cfg_options(self)
        self.add_argument(
            '--launcher',
            choices=['none', *SET_BY_LAUNCHER],
            default='none',
            help='how the processes of a distributed run were started (default: none)',
        )
        # torchrun sets LOCAL_RANK; older launchers pass it as a flag, spelt either way.
        self.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_command(commands: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    """Adds a command to those of a tool; the example is what follows the tool's name."""
    description = f'{help_text[0].upper()}{help_text[1:]}.\n\nExample:\n    {_called()} {example}'
    return commands.add_parser(name, help=help_text, description=description)


def _called() -> str:
    """Returns what the user types for this command: the tool of a clone, or the installed command."""
    return sys.argv[0] if sys.argv[0].startswith('mmyolo-ema ') else f'python tools/{Path(sys.argv[0]).name}'


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds MMDetection's flag to override settings of a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_CfgOptions,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_cfg.max_epochs=5 or list="[1,2]"',
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which :func:`read_plan` knows how long the run of a config is."""
    parser.add_argument('--iters', type=count, help='iterations in the whole run; needed without a config that tells')
    parser.add_argument(
        '--dataset-size',
        type=count,
        help='images in the training set (default: the data '
        'set of the config is built, which reads its annotations, and counted)',
    )
    parser.add_argument('--gpus', type=count, default=1, help='processes that train (default: 1)')
    add_cfg_options(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that chooses from the weights in a checkpoint."""
    parser.add_argument(
        '--weights',
        metavar='NAME',
        help='ema: the averaged weights; raw: those that the optimizer '
        'trained; or the name of a further average (default: ema, or the only ones of a file that '
        'holds one set)',
    )


def count(text: str) -> int:
    """Returns a number of updates, images and the like that a flag names."""
    number = int(text)
    if not 1 <= number <= MOST_UPDATES:
        raise argparse.ArgumentTypeError(f'must be 1 to {MOST_UPDATES}, but got {text:.20}')
    return number


class _CfgOptions(DictAction):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Optional[str] = None,
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError):
            parser.error(f'--cfg-options takes KEY=VALUE, but got {" ".join(values)}')


def check_new(path: Union[str, Path], flag: str) -> None:
    """Stops if there is a file already that a flag names to be written."""
    if os.path.lexists(path):
        stop(f'{path} exists: name another file for {flag}, or remove it')


def check_writable(path: Union[str, Path], what: str) -> None:
    """Stops if a file or a folder could not be made, before the work that it is for begins."""
    path = Path(path)
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        stop(f'{what} {path} cannot be made: {nearest} is not a folder')
    if not os.access(nearest, os.W_OK | os.X_OK):
        stop(f'{what} {path} cannot be made: {nearest} is not writable')
