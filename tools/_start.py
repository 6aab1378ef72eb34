"""Start a command of the package, and say in one line what it lacks."""

import sys


def start(command: str) -> None:
    """Runs a command with the arguments of this process."""
    try:
        from mmyolo_ema.cli import run_command
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except (ModuleNotFoundError, RuntimeError) as error:
        hint = ''
        if (getattr(error, 'name', None) or '').split('.')[0] in ('mmyolo_ema', 'torch'):
            hint = f' for {sys.executable}: after make, use .venv/bin/python; elsewhere, pip install -e .'
        print(f'error: {error}{hint}', file=sys.stderr)
        sys.exit(2)
    run_command(command, sys.argv)
