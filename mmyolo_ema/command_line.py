"""What the command lines under tools/ share: flags, configs, and errors in one line."""

import argparse
import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional, Union

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, DictAction
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import distributed, nn

from mmyolo_ema import building
from mmyolo_ema.printing import printable, say
from mmyolo_ema.run_plan import RunPlan, plan_run
from mmyolo_ema.schedules import MOST_UPDATES

__all__ = [
    'OneLineParser', 'Parser', 'add_cfg_options', 'add_command', 'add_run_flags', 'build_model', 'build_runner',
    'check_new', 'check_writable', 'count', 'finish', 'join_processes', 'load_config', 'read_config', 'read_plan',
    'report_error', 'run', 'show', 'stop'
]


# What each launcher tells the processes that it starts.
_SET_BY_LAUNCHER = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def stop(message: Union[str, Exception]) -> NoReturn:
    """Ends the program with one line on standard error and exit status 2."""
    report_error(message)
    sys.exit(2)


def report_error(message: Union[str, Exception]) -> None:
    """Prints one line on standard error."""
    print('error: ' + printable(' '.join(str(message).split())), file=sys.stderr)


def run(main: Callable[[], Optional[int]]) -> NoReturn:
    """Runs a tool to its end, which is no traceback if the user stops it or closes what it writes to."""
    # So that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A worker of a process pool would not die of that, and the pool would wait for it for ever.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # What is left in the buffer would be written, and fail, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        if error.errno is None:  # told again by torch, for a worker process, with the traceback as its text
            raise
        stop(error)
    sys.exit(status)


def show(table: Table) -> None:
    """Prints a table: with lines on a terminal that is wide enough, otherwise as Markdown of any width."""
    console = _PrintableConsole(markup=False, highlight=False)
    table.title_justify = 'left'
    wide = _PrintableConsole(width=1000, markup=False, highlight=False, color_system=None)
    if console.is_terminal and wide.measure(table).maximum <= console.width:
        console.print(table)
        return
    if table.title:
        say(table.title, '')
        table.title = None
    table.box = box.MARKDOWN
    with wide.capture() as captured:
        wide.print(table)
    say(*'\n'.join(line.rstrip() for line in captured.get().split('\n')).strip('\n').split('\n'))


class _PrintableConsole(Console):
    """Renders cells of tables, which may hold names from a file."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        return super().render_str(printable(text), **kwargs)


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong arguments in one line; shows its description as it is written."""

    def __init__(self, description: Optional[str], **kwargs: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        stop(f'{message} (see {self.prog} --help)')


class Parser(OneLineParser):
    """Parses the flags that MMDetection's train and test commands have in common."""

    def __init__(self, description: Optional[str]) -> None:
        super().__init__(description)
        self.add_argument('config', help='config file')
        self.add_argument('--work-dir', help='folder for logs, results and checkpoints (default: '
                          "the config's work_dir, or work_dirs/ and the config's name)")
        add_cfg_options(self)
        self.add_argument('--launcher', choices=['none', *_SET_BY_LAUNCHER], default='none',
                          help='how the processes of a distributed run were started (default: none)')
        # torchrun sets LOCAL_RANK; older launchers pass it as a flag, spelt either way.
        self.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_command(commands: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    """Adds a command to those of a tool; the example is what follows the tool's name."""
    tool = Path(sys.argv[0]).name
    return commands.add_parser(name, help=help_text, description=f'{help_text[0].upper()}{help_text[1:]}.\n\nExample:\n'
                               f'    python tools/{tool} {example}')


def check_new(path: Union[str, Path], flag: str) -> None:
    """Stops if there is a file already that a flag names to be written."""
    if os.path.lexists(path):
        stop(f'{path} exists: name another file for {flag}, or remove it')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds MMDetection's flag to override settings of a config."""
    parser.add_argument('--cfg-options', nargs='+', action=_CfgOptions, metavar='KEY=VALUE',
                        help='override settings of the config, e.g. train_cfg.max_epochs=5 or list="[1,2]"')


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which :func:`read_plan` knows how long the run of a config is."""
    parser.add_argument('--iters', type=count, help='iterations in the whole run; needed without a config that tells')
    parser.add_argument('--dataset-size', type=count, help='images in the training set (default: the data '
                        'set of the config is built, which reads its annotations, and counted)')
    parser.add_argument('--gpus', type=count, default=1, help='processes that train (default: 1)')
    add_cfg_options(parser)


def count(text: str) -> int:
    """Returns a number of updates, images and the like that a flag names."""
    number = int(text)
    if not 1 <= number <= MOST_UPDATES:
        raise argparse.ArgumentTypeError(f'must be 1 to {MOST_UPDATES}, but got {text:.20}')
    return number


class _CfgOptions(DictAction):

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: Optional[str] = None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError):
            parser.error(f'--cfg-options takes KEY=VALUE, but got {" ".join(values)}')


def read_config(path: str, options: Optional[dict]) -> Config:
    """Returns a config with overrides; stops if it cannot be read."""
    if not os.path.isfile(path):
        stop(f'there is no config {path}')
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options or {})
    except (Exception, SystemExit) as error:  # a config is a program, so anything can go wrong in it
        stop(f'the config {path} cannot be read: {type(error).__name__}: {error}')
    return cfg


def read_plan(cfg: Config, args: argparse.Namespace) -> RunPlan:
    """Returns the run and the average of a config; stops if it does not tell enough."""
    try:
        plan = plan_run(cfg, args.gpus, args.iters, args.dataset_size)
    except (ValueError, TypeError) as error:
        stop(f'the config {args.config} cannot be reported on: {error}')
    if plan.updates > MOST_UPDATES:
        stop(f'the config {args.config} cannot be reported on: {plan.updates:,} updates are more than {MOST_UPDATES:,}')
    return plan


def load_config(args: argparse.Namespace, needs: Sequence[str]) -> Config:
    """Returns the config that the flags name, with their overrides; stops if it cannot be read or lacks a part."""
    cfg = read_config(args.config, args.cfg_options)
    for part in needs:
        if cfg.get(part) is None:
            stop(f'the config {args.config} defines no {part}')
    cfg.launcher = args.launcher
    if args.work_dir == '':
        stop('--work-dir is empty: name a folder')
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    check_writable(cfg.work_dir, 'the work directory')
    variable = _SET_BY_LAUNCHER.get(args.launcher)
    if variable is not None and variable not in os.environ:
        stop(f'--launcher {args.launcher} is for a process that it started: {variable} is not set. '
             'Use tools/dist_train.sh, tools/slurm_train.sh or their twins for tests.')
    return cfg


def check_writable(path: Union[str, Path], what: str) -> None:
    """Stops if a file or a folder could not be made, before the work that it is for begins."""
    path = Path(path)
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        stop(f'{what} {path} cannot be made: {nearest} is not a folder')
    if not os.access(nearest, os.W_OK | os.X_OK):
        stop(f'{what} {path} cannot be made: {nearest} is not writable')


def build_model(cfg: Config) -> nn.Module:
    """Returns the model of a config, to compare a checkpoint with; stops if it cannot be built."""
    init_default_scope(building.scope_of(cfg))
    try:
        return building.build_model(cfg)
    except Exception as error:  # what a model's class raises is up to its class
        stop(f"the config's model cannot be built: {type(error).__name__}: {error}")


def join_processes(cfg: Config, local_rank: int) -> None:
    """Joins the processes of a run if the config names a launcher; once, and before MMEngine's runner would do it."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if cfg.launcher == 'none' or distributed.is_initialized():
        return
    if _joins_by_gloo(cfg):
        distributed.init_process_group('gloo')
    else:
        options = cfg.get('env_cfg') or {}
        set_multi_processing(**options.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **options.get('dist_cfg', {}))


def _joins_by_gloo(cfg: Config) -> bool:
    """Whether there is no GPU, one of which MMEngine would select."""
    return cfg.launcher == 'pytorch' and not torch.cuda.is_available()


def build_runner(cfg: Config, local_rank: int) -> Runner:
    """Returns the runner of a config, in a process group if the config names a launcher."""
    join_processes(cfg, local_rank)
    setup_cache_size_limit_of_dynamo()
    if _joins_by_gloo(cfg):
        # MMEngine would wrap the model for a GPU, which raises where there is none.
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)))
        cfg.model_wrapper_cfg.device_ids = None
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def finish() -> None:
    """Ends the process if gloo connects it to others; returns otherwise.

    Leaving the group ends none of gloo's threads, and one that still holds a tensor while Python takes itself apart
    aborts the process. So that part of the end is left out, and what was registered for the end is done.
    """
    if not distributed.is_initialized() or distributed.get_backend() != 'gloo':
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
