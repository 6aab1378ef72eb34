"""Test a detector: the averaged weights of a checkpoint, or the raw ones.

Example:
    python tools/test.py CONFIG epoch_300.pth
    python tools/test.py CONFIG epoch_300.pth --weights raw
"""

import argparse
from copy import deepcopy
from pathlib import Path

import mmyolo_ema  # noqa: F401  first, because it says what an environment lacks

# isort: split
from mmengine.config import Config
from mmengine.registry import METRICS

from mmyolo_ema import checkpoint
from mmyolo_ema.command_line import Parser, build_model, build_runner, check_new, finish, load_config, stop
from mmyolo_ema.hooks import RawWeightsHook


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--weights', choices=['ema', 'raw'], default='ema',
                        help='which weights of the checkpoint to test: the averaged ones, which it holds under '
                        "'state_dict', or those the optimizer trained (default: ema)")
    parser.add_argument('--out', help='write the predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help="draw the predictions into this folder in the run's own")
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between two shown images (default: 2)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def check_out(out: str) -> None:
    if not out.endswith(('.pkl', '.pickle')):
        stop(f'--out must name a .pkl file, but got {out}')
    check_new(out, '--out')
    if not Path(out).parent.is_dir():
        stop(f'--out cannot be written: there is no folder {Path(out).parent}')


def check_checkpoint(args: argparse.Namespace, cfg: Config) -> None:
    """Stops if the wanted weights are not in the file or not the model's, before anything is written."""
    try:
        content = checkpoint.read(args.checkpoint, mmap=True)
    except (OSError, ValueError, RuntimeError) as error:
        stop(error)
    model = build_model(cfg)
    try:
        weights = checkpoint.raw_weights if args.weights == 'raw' else checkpoint.averaged_weights
        remark = checkpoint.load_all(weights(content), model).remark
    except ValueError as error:
        stop(f'{args.checkpoint} cannot be tested with this config: {error}')
    if remark:
        print(f'{args.checkpoint}: {remark}')
    if not checkpoint.has_ema(content):
        kind = ', the raw ones,' if checkpoint.state_dict_kind(content) == 'raw' else ''
        print(f'{args.checkpoint} holds no EMA: its only weights{kind} are tested')


def set_visualization(cfg: Config, args: argparse.Namespace) -> None:
    if 'visualization' not in (cfg.get('default_hooks') or {}):
        stop("--show and --show-dir need default_hooks.visualization=dict(type='DetVisualizationHook') in the config")
    cfg.default_hooks.visualization.update(draw=True, show=args.show, wait_time=args.wait_time)
    if args.show_dir:
        cfg.default_hooks.visualization.test_out_dir = args.show_dir


def set_tta(cfg: Config) -> None:
    """Wraps model and pipeline for test-time augmentation: the config's own, or a horizontal flip."""
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(
            type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
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


def main() -> None:
    args = parse_args()
    checkpoint.use_safe_loader()
    cfg = load_config(args, needs=('model', 'test_dataloader', 'test_cfg', 'test_evaluator'))
    if args.out is not None:
        check_out(args.out)
    check_checkpoint(args, cfg)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        set_visualization(cfg, args)
    if args.tta:
        set_tta(cfg)
    runner = build_runner(cfg, args.local_rank)
    if args.weights == 'raw':
        runner.register_hook(RawWeightsHook())
    if args.out is not None:
        dump = dict(type='mmdet.DumpDetResults', out_file_path=args.out)
        runner.test_evaluator.metrics.append(METRICS.build(dump))
    runner.test()
    finish()


if __name__ == '__main__':
    main()
