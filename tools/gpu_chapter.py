"""The chapter of docs/performance.md that a GPU's numbers make: tables, and the aims that were met and missed."""

from collections.abc import Iterable
from typing import Any

BEGIN, END = '<!-- written by tools/gpu_check.py --chapter -->', '<!-- end of what is written -->'
OURS, LIMIT, NO_HOOK = 'mmyolo_ema', 'limit', 'no hook'


def with_chapter(page: str, content: dict[str, Any]) -> str:
    """Returns a page with the numbers of a check in the place of those between its two marks.

    Raises:
        ValueError: If the marks are missing, or the check was made without a GPU.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f'the page has no place for the chapter: {BEGIN} ... {END}')
    if not content['card']:
        raise ValueError('the check was made without a GPU')
    before, rest = page.split(BEGIN)
    return f'{before}{BEGIN}\n\n{chapter(content)}\n{END}{rest.split(END)[1]}'


def chapter(content: dict[str, Any]) -> str:
    """Returns a check's numbers in Markdown."""
    parts = content['parts']
    lines = [
        f'`make gpu-check` on one {content["card"]} (driver {content["driver"]}, torch {content["torch"]}, '
        f'{content["cores"]} cores, {content["date"]}): {content["seconds"]:.0f} s in all, of which the set-up '
        f'took {content["set_up_seconds"]:.0f} s.\n'
    ]
    lines += table(
        ['part', 'ended', 's'], ([name, ended(part), f'{part["seconds"]:.0f}'] for name, part in parts.items())
    )
    steps = parts.get('step', {}).get('results', {}).get('results', [])
    hooks = parts.get('hook', {}).get('results', {}).get('results', [])
    if steps:
        lines += step_tables(steps)
    if hooks:
        lines += hook_tables(hooks)
    if steps or hooks:
        lines += table(['aim', 'measured', ''], [*step_aims(steps), *hook_aims(hooks)])
    return '\n'.join(lines)


def ended(part: dict[str, Any]) -> str:
    """Returns how a part ended; of the tests, with their count."""
    counts = [line for line in part['said'] if ' passed' in line]
    return f'{part["ended"]}: {counts[-1]}' if counts else part['ended']


def step_tables(steps: list[dict[str, Any]]) -> list[str]:
    """Returns the time of a step on the GPU and on its host, by detector and class."""
    rows = [
        [
            f'{cost["detector"]}, update_buffers={cost["update_buffers"]}',
            name,
            us(costs['host']),
            us(costs['gpu']),
            us(costs['check']),
            us(costs['swap']),
        ]
        for cost in steps
        for name, costs in cost['costs'].items()
    ]
    return [
        'A step, in microseconds: until the call returns (host), and of its work on the GPU.\n',
        *table(['detector', 'class', 'host', 'GPU', 'check', 'swap'], rows),
    ]


def hook_tables(hooks: list[dict[str, Any]]) -> list[str]:
    """Returns what hooks add to a training step."""
    rows = []
    for cost in hooks:
        for name, step in cost['step'].items():
            added = cost['added'].get(name)
            rows.append(
                [f'{cost["detector"]}, {cost["batch_size"]} images', name, ms(step), ms(added), share(cost, name)]
            )
    return [
        f"A training step in MMEngine's runner, {hooks[0]['image_size']} x {hooks[0]['image_size']} pixels, mixed "
        'precision, in milliseconds: median, and quartiles.\n',
        *table(['detector', 'hook', 'step', 'added', 'of a step'], rows),
    ]


def step_aims(steps: list[dict[str, Any]]) -> Iterable[list[str]]:
    """Yields the aims for a step, with what was measured."""
    for cost in steps:
        costs = cost['costs']
        if cost['detector'] == 'rtmdet-l':
            ratio = costs[OURS]['gpu']['median'] / costs[LIMIT]['gpu']['median']
            yield [
                f'rtmdet-l, update_buffers={cost["update_buffers"]}: GPU time at most 1.25 times the limit',
                f'{ratio:.2f}',
                verdict(ratio <= 1.25),
            ]
        if cost['detector'] == 'rtmdet-tiny':
            theirs, ours = (costs[name]['host']['median'] + costs[name]['gpu']['median'] for name in ('mmdet', OURS))
            yield [
                f"rtmdet-tiny, update_buffers={cost['update_buffers']}: 20 times faster than MMDetection's class, "
                'host and GPU together',
                f'{theirs / ours:.1f}',
                verdict(theirs >= 20 * ours),
            ]


def hook_aims(hooks: list[dict[str, Any]]) -> Iterable[list[str]]:
    """Yields the aim for a training step, with what was measured."""
    for cost in hooks:
        met = cost['added'][OURS]['median'] <= 0.005 * cost['step'][NO_HOOK]['median']
        yield [
            f'{cost["detector"]}, {cost["batch_size"]} images: the hook adds at most 0.5 % to a step',
            share(cost, OURS),
            verdict(met),
        ]


def verdict(met: bool) -> str:
    return 'met' if met else '**missed**'


def share(cost: dict[str, Any], name: str) -> str:
    """Returns what a hook adds as a share of a step without one."""
    return f'{cost["added"][name]["median"] / cost["step"][NO_HOOK]["median"]:.2%}' if name in cost['added'] else ''


def us(timing: dict[str, Any]) -> str:
    """Returns a median in microseconds."""
    return f'{timing["median"] * 1e6:.0f}' if timing else ''


def ms(timing: dict[str, Any]) -> str:
    """Returns median and quartiles in milliseconds."""
    if not timing:
        return ''
    return '{:.2f} ({:.2f} - {:.2f})'.format(*(timing[key] * 1e3 for key in ('median', 'lower', 'upper')))


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Returns the lines of a table in Markdown, and an empty one."""
    return [f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *rows)] + ['']
