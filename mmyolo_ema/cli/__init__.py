"""The commands of the package: ``mmyolo-ema train | test | schedule | checkpoint | posthoc``, each in a file.

The only room that prints. A command's arguments and words are in its file, its tables in the one beside it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, Optional

from mmyolo_ema.cli.ending import run, stop
from mmyolo_ema.environment import explained
from mmyolo_ema.printing import say

__all__ = ['COMMANDS', 'call', 'main', 'run_command']

#: The commands, and what they do.
COMMANDS = dict(
    train='train a model by its config',
    test='test the averaged or the raw weights of a checkpoint',
    schedule='tell what momentum and gamma mean for the run of a config',
    checkpoint='tell what a checkpoint holds, and export its averaged or raw weights',
    posthoc='choose the horizon of the average after the training',
)


def main() -> None:
    """Runs the command that the first argument names: what ``mmyolo-ema`` is."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        commands = (f'  {command:12}{text}' for command, text in COMMANDS.items())
        say('usage: mmyolo-ema COMMAND ...', '', *commands, '', 'mmyolo-ema COMMAND --help tells what it takes.')
    elif name in COMMANDS:
        run_command(name, [f'mmyolo-ema {name}', *arguments])
    else:
        stop(f'there is no command {name}: mmyolo-ema has {", ".join(COMMANDS)}')


def run_command(name: str, argv: Sequence[str]) -> NoReturn:
    """Runs a command and ends the process. Imports it only then, so that an interrupt meanwhile is one line too.

    Its arguments are looked at first, so that ``--help`` and what is wrong with them do not wait for the import.
    """
    sys.argv = list(argv)
    run(lambda: call(name))


def call(name: str) -> Optional[int]:
    """Calls a command with the arguments in ``sys.argv``, and returns its exit status."""
    try:
        with explained():
            args = getattr(import_module('mmyolo_ema.cli.parsers'), name)()
            import_module('mmyolo_ema.registry')  # which looks at the environment
            command = import_module(f'mmyolo_ema.cli.{name}')
    except RuntimeError as error:
        stop(error)
    return command.main(args)
