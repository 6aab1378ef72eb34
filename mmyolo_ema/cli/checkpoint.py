"""Tell what a checkpoint holds, and export one set of its weights."""

import argparse
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import torch

from mmyolo_ema import checkpoint
from mmyolo_ema.checkpoint.weights import kind_taken
from mmyolo_ema.cli import checkpoint_tables as tables
from mmyolo_ema.cli.arguments import check_new
from mmyolo_ema.cli.ending import report_error, stop
from mmyolo_ema.cli.tables import show
from mmyolo_ema.printing import say


def inspect(args: argparse.Namespace) -> int:
    """Tells of each file; those that cannot be read are named and do not keep the others from it."""
    status, inspections = 0, []
    # A folder stands for the checkpoints in it.
    for path in [file for named in args.files for file in sorted(named.glob('[!.]*.pth')) or [named]]:
        try:
            inspection = checkpoint.inspect(path)
        except (OSError, ValueError, RuntimeError) as error:
            report_error(error, path)
            status = 2
            continue
        inspections.append(dict(asdict(inspection), problems=tables.problems(inspection)))
        if not args.json:
            print_inspection(inspection)
    if args.json:
        say(*json.dumps(plain(inspections), indent=2).split('\n'))
    return status


def plain(value: object) -> object:
    """Returns a value as JSON can hold it: what the config in a file names may be anything."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    is_known = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if is_known else str(value)


def print_inspection(inspection: checkpoint.Inspection) -> None:
    say(*tables.inspection_lines(inspection), '')
    show(tables.weights_table(inspection))
    say('')
    if inspection.distance is not None:
        show(
            tables.difference_table(
                f'average and raw weights: {tables.apart(inspection.distance.relative)}', inspection.differences
            )
        )
        say('')
    say(*tables.problems(inspection), '')


def extract(args: argparse.Namespace) -> None:
    check_new(args.out, '-o')
    say_what_is_taken(args)
    checkpoint.extract(args.file, args.out, args.weights)
    say(f'{args.out}  {tables.megabytes(args.out.stat().st_size)} of {tables.megabytes(args.file.stat().st_size)}')


def publish(args: argparse.Namespace) -> None:
    if args.out.endswith('/') or os.path.isdir(args.out):
        stop(f'-o {args.out} is a folder: add the beginning of a name, such as {Path(args.out, args.file.stem)}')
    dtype = getattr(torch, args.dtype) if args.dtype else None
    say_what_is_taken(args)
    done = checkpoint.publish(args.file, Path(args.out), args.weights, dtype)
    if done.worst is not None:
        say(f'largest relative error by {args.dtype}: {done.error:.2g} (L2), in {done.worst}')
    say(f'{done.path}  {tables.megabytes(done.path.stat().st_size)} of {tables.megabytes(args.file.stat().st_size)}')


def say_what_is_taken(args: argparse.Namespace) -> None:
    """Tells which weights are exported where that is not obvious, and what is wrong with them."""
    inspection = checkpoint.inspect(args.file)
    kinds = [weights.kind for weights in inspection.weights]
    if len(kinds) == 1:
        say(f'{args.file} holds one set of weights only, {KINDS.get(kinds[0], kinds[0])}: it is taken')
    for line in tables.broken(inspection, args.weights if args.weights in kinds else kinds[0]):
        say(f'warning: {line}')


KINDS = dict(ema='the averaged ones', raw='the raw ones', only='without saying which')


def compare(args: argparse.Namespace) -> int:
    comparison = checkpoint.compare(args.one, args.other, args.weights)
    sets = ', '.join(
        f'{path} ({kind_taken(checkpoint.read(path, mmap=True), args.weights)})' for path in (args.one, args.other)
    )
    show(tables.difference_table(sets, comparison.groups))
    say('', 'equal' if comparison.are_equal else 'not equal', *tables.comparison_lines(comparison))
    return 0 if comparison.are_equal else 1


COMMANDS = dict(inspect=inspect, extract=extract, publish=publish, compare=compare)


def main(args: argparse.Namespace) -> int:
    try:
        return COMMANDS[args.command](args) or 0
    except BrokenPipeError:
        raise
    except FileExistsError as error:
        stop(f'{error.filename2 or error.filename} exists: it is left as it is')
    except ImportError as error:
        stop(f'{error.name} is not installed: pip install {error.name}')
    except (OSError, ValueError, RuntimeError) as error:
        stop(error, *[getattr(args, name) for name in ('file', 'one', 'other') if name in args])
