"""Test a detector: the averaged weights of a checkpoint, the raw ones, or those of a further average."""

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import METRICS

from mmyolo_ema import checkpoint
from mmyolo_ema.building import scope_of
from mmyolo_ema.checkpoint.weights import kind_taken
from mmyolo_ema.cli.arguments import check_new, check_writable
from mmyolo_ema.cli.config import build_model, load_config
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.runner import build_runner, finish, join_processes, stopped_by_all
from mmyolo_ema.cli.visualization import draw_predictions
from mmyolo_ema.hooks import StoredWeightsHook
from mmyolo_ema.printing import say


def check_out(out: str) -> None:
    if not out.endswith(('.pkl', '.pickle')):
        stop(f'--out must name a .pkl file, but got {out}')
    check_new(out, '--out')
    if not Path(out).parent.is_dir():
        stop(f'--out cannot be written: there is no folder {Path(out).parent}')
    check_writable(out, '--out')


def check_checkpoint(args: argparse.Namespace, cfg: Config) -> str:
    """Returns which weights are tested; stops if they are not in the file or not the model's."""
    try:
        content = checkpoint.read(args.checkpoint, mmap=True)
        checkpoint.verify(args.checkpoint, must_have_checksums=False)
    except (OSError, ValueError, RuntimeError) as error:
        stop(error)
    model = build_model(cfg)
    try:
        remark = checkpoint.load_all(checkpoint.weights_of(content, args.weights), model).remark
    except ValueError as error:
        stop(f'{args.checkpoint} cannot be tested with this config: {error}')
    if remark:
        say(f'{args.checkpoint}: {remark}')
    return tested(content, args.weights)


def tested(content: dict[str, Any], kind: Optional[str]) -> str:
    """Returns in words which weights of a file are tested."""
    kind = kind_taken(content, kind)
    if kind == 'raw' and len(checkpoint.weights_in(content)) > 1:
        return 'raw weights'
    if kind in ('raw', 'only'):
        return "the file's only weights" + (' (raw)' if kind == 'raw' else '')
    updates = checkpoint.updates_in(content, kind)
    return ('EMA weights' if kind == 'ema' else f'weights of the average {kind!r}') + (
        f' of {updates:,} updates' if updates is not None else ''
    )


def set_visualization(cfg: Config, args: argparse.Namespace) -> None:
    try:
        draw_predictions(cfg, args.show, args.wait_time, args.show_dir)
    except ValueError as error:
        stop(f'--show and --show-dir: {error}')


def set_tta(cfg: Config) -> None:
    """Wraps model and pipeline for test-time augmentation: the config's own, or MMDetection's horizontal flip."""
    missing = [part for part in ('tta_model', 'tta_pipeline') if part not in cfg]
    if missing and scope_of(cfg) != 'mmdet':
        stop(
            f'--tta: the config defines no {" and no ".join(missing)}, and its default_scope is {scope_of(cfg)}: only '
            'for mmdet there is a default'
        )
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    if 'tta_pipeline' not in cfg:
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        flips = [dict(type='mmdet.RandomFlip', prob=1.0), dict(type='mmdet.RandomFlip', prob=0.0)]
        pack = [dict(type='mmdet.PackDetInputs', meta_keys=keys)]
        cfg.tta_pipeline = deepcopy(innermost_dataset(cfg).pipeline)[:-1]
        cfg.tta_pipeline.append(dict(type='TestTimeAug', transforms=[flips, pack]))
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    innermost_dataset(cfg).pipeline = cfg.tta_pipeline


def innermost_dataset(cfg: Config) -> Config:
    """Returns the config of the dataset itself, inside any wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def main(args: argparse.Namespace) -> None:
    checkpoint.use_safe_loader()
    cfg = load_config(args, needs=('model', 'test_dataloader', 'test_cfg', 'test_evaluator'))
    join_processes(cfg, args.local_rank)
    with stopped_by_all():
        if args.out is not None and is_main_process():
            check_out(args.out)
        what = check_checkpoint(args, cfg)
        cfg.load_from, cfg.resume = args.checkpoint, False
        if args.show or args.show_dir:
            set_visualization(cfg, args)
        if args.tta:
            set_tta(cfg)
    runner = build_runner(cfg, args.local_rank)
    runner.logger.info(f'testing: {what}')
    # For the file of metrics.
    runner.message_hub.update_info('test/weights', what)
    if args.weights:
        runner.register_hook(StoredWeightsHook(args.weights))
    if args.out is not None:
        dump = dict(type='mmdet.DumpDetResults', out_file_path=args.out)
        runner.test_evaluator.metrics.append(METRICS.build(dump))
    runner.test()
    finish()
