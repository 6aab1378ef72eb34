"""Whether a detector is better than another by more than chance, from their detections on the same images.

On other validation images of the same kind, COCO's mAP would be another, and so would the difference of two. The
bootstrap imitates other images: it draws as many as there are, with replacement, again and again, and looks how much
the difference changes. An image that is drawn twice counts twice, so detections are matched to the ground truth once,
and each draw only sums up anew.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

__all__ = ['CategoryMatches', 'Comparison', 'Matches', 'compare', 'matches', 'mean_average_precision']

_RECALLS = Params('bbox').recThrs


class CategoryMatches(NamedTuple):
    """Which detections of a category are right, at each of T thresholds of IoU.

    Attributes:
        images: For each of D detections, highest score first, the place of its image in :attr:`Matches.images`.
        decisive: Places of the C detections that are right or ignored at some threshold, rising. All others are wrong
            at each.
        hits: Whether these are right, of shape (T, C).
        ignored: Whether these are left out, as what lies in a crowd is, of shape (T, C).
    """

    images: np.ndarray
    decisive: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray


class Matches(NamedTuple):
    """How a detector's detections match the ground truth.

    Attributes:
        images: Ids of the images, rising.
        categories: The K categories that have ground truth.
        positives: Number of objects to find, by category and image, of shape (K, images).
    """

    images: np.ndarray
    categories: list[CategoryMatches]
    positives: np.ndarray


class Comparison(NamedTuple):
    """What is known about the best of some detectors, beside a base.

    Attributes:
        best: Name of the candidate with the highest mAP.
        difference: Its mAP less that of the base; positive is better.
        low: Lower end of the difference's 95 % interval, which does not know that the candidate was chosen.
        high: The upper end.
        p_value: How often the best of so many would look this good by chance, if none were better than the base.
    """

    best: str
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def is_better(self) -> bool:
        """Whether the best candidate is better than the base by more than chance, at the usual 5 %."""
        return self.p_value < 0.05 and self.low > 0


def matches(ground_truth: COCO, detections: Union[str, Path, Sequence[Mapping[str, Any]]], iou_type: str = 'bbox',
            image_ids: Optional[Sequence[int]] = None, category_ids: Optional[Sequence[int]] = None) -> Matches:
    """Matches detections to the ground truth, as pycocotools' COCOeval does for objects of all sizes.

    Args:
        ground_truth: The annotations.
        detections: A file of COCO results, as MMDetection's CocoMetric writes it to ``<outfile_prefix>.bbox.json``; or
            what such a file holds. The best 100 of an image and category count.
        iou_type: 'bbox' or 'segm'. Defaults to 'bbox'.
        image_ids: The images that count. Defaults to None: all of the ground truth.
        category_ids: The categories that count. Defaults to None: all of the ground truth.

    Raises:
        OSError: If the file cannot be read.
        AssertionError: From pycocotools, if a detection is on an image that the ground truth lacks.

    Example:
        >>> truth = COCO()
        >>> box = dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9])
        >>> truth.dataset = dict(images=[dict(id=1), dict(id=2)], categories=[dict(id=1)],
        ...                      annotations=[dict(box, id=1, area=81, iscrowd=0)])
        >>> truth.createIndex()
        creating index...
        index created!
        >>> matched = matches(truth, [dict(box, score=0.5), dict(box, image_id=2, score=0.9)])
        >>> [round(mean_average_precision(matched, np.array(counts)), 3) for counts in ([1, 1], [1, 0])]
        [0.5, 1.0]
    """
    # pycocotools writes into the detections, prints its progress, and cannot load none.
    results = (json.loads(Path(detections).read_text()) if isinstance(detections, (str, Path))
               else [dict(detection) for detection in detections])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results) if results else COCO(), iou_type)
        params = evaluation.params
        params.maxDets, params.areaRng = [100], params.areaRng[:1]
        params.imgIds = params.imgIds if image_ids is None else image_ids
        params.catIds = params.catIds if category_ids is None else category_ids
        evaluation.evaluate()
    size = len(params.imgIds)
    by_category = [evaluation.evalImgs[place * size:(place + 1) * size] for place in range(len(params.catIds))]
    positives = np.array([[np.count_nonzero(image['gtIgnore'] == 0) if image else 0 for image in evaluated]
                          for evaluated in by_category]).reshape(len(by_category), size)
    counted = np.flatnonzero(positives.any(axis=1))
    return Matches(np.array(params.imgIds), [_category(by_category[place]) for place in counted], positives[counted])


def _category(evaluated: Sequence[Optional[dict[str, Any]]]) -> CategoryMatches:
    """Returns what COCOeval has for each image, in COCOeval's order; None is an image with nothing in it."""
    there = [(place, image) for place, image in enumerate(evaluated) if image]
    order = np.argsort(-np.concatenate([image['dtScores'] for _, image in there]), kind='mergesort')
    images = np.concatenate([np.full(len(image['dtScores']), place) for place, image in there])[order]
    matched = np.concatenate([image['dtMatches'] for _, image in there], axis=1)[:, order] != 0
    ignored = np.concatenate([image['dtIgnore'] for _, image in there], axis=1)[:, order].astype(bool)
    decisive = np.flatnonzero((matched | ignored).any(axis=0))
    return CategoryMatches(images, decisive, (matched & ~ignored)[:, decisive], ignored[:, decisive])


def mean_average_precision(matches: Matches, counts: Optional[np.ndarray] = None) -> float:
    """Returns COCO's mAP of images that count several times, or not at all.

    Args:
        matches: The matched detections.
        counts: How often each image counts, whole numbers, in the order of ``matches.images``. Defaults to None: once.

    Returns:
        The mean over the categories that have ground truth in these images, and over thresholds of IoU from 0.5 to
        0.95; -1 if there is no ground truth, as COCOeval has it. With a count of 1 for all, ``bbox_mAP``.

    Example: See :func:`matches`.
    """
    if counts is None:
        counts = np.ones(len(matches.images), dtype=int)
    totals = matches.positives @ counts
    precisions = [_average_precision(category, counts, total)
                  for category, total in zip(matches.categories, totals) if total]
    return float(np.mean(precisions)) if precisions else -1.0


def _average_precision(category: CategoryMatches, counts: np.ndarray, positives: int) -> float:
    every = counts[category.images]
    # A wrong detection only lowers the precision, so the highest one at any recall is met at a decisive detection.
    weights = every[category.decisive]
    hits = np.cumsum(category.hits * weights, axis=1)
    seen = np.cumsum(every)[category.decisive] - np.cumsum(category.ignored * weights, axis=1)
    # COCOeval's own guard against 0 / 0; the last column is for recalls that are not reached.
    precision = np.pad(hits / (seen + np.spacing(1)), ((0, 0), (0, 1)))
    highest_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.array([np.searchsorted(recall, _RECALLS) for recall in hits / positives])
    return float(np.take_along_axis(highest_from, reached, axis=1).mean())


def compare(candidates: Mapping[str, Matches], base: Matches, resamples: int = 1000, seed: int = 0,
            progress: Callable[[Iterable], Iterable] = iter) -> Comparison:
    """Tells whether the best of some detectors is better than a base by more than chance: a paired bootstrap.

    Each draw of images is the same for all detectors. What makes an image hard makes it hard for each, so their
    difference is known far better than either mAP is.

    Who tries ten averages and shows the best had ten chances to be lucky: its 95 % interval is above 0 far too often
    when none is better. So the p value compares the best gain with the best that as many candidates get by the luck of
    the draw: White, "A Reality Check for Data Snooping", 2000. Give all that were tried, not only those that went well.

    Only the luck of the validation images is known. The luck of a training (its seed, the order of its images) is not:
    two trainings of one config may be apart by more than chance here.

    Args:
        candidates: The matches of the detectors that were tried, by name.
        base: Those of the detector that they shall be better than, on the same images.
        resamples: How often images are drawn. The smallest p value is ``1 / (1 + resamples)``. Defaults to 1000.
        seed: Of the draws. Defaults to 0.
        progress: Wraps the draws, as tqdm does. Defaults to showing nothing.

    Raises:
        ValueError: If there are no candidates or draws, or if one has other images or ground truth than the base.

    Example:
        >>> truth = COCO()
        >>> boxes = [dict(image_id=place, category_id=1, bbox=[0, 0, 9, 9]) for place in range(20)]
        >>> truth.dataset = dict(images=[dict(id=place) for place in range(20)], categories=[dict(id=1)], annotations=[
        ...     dict(box, id=1 + place, area=81, iscrowd=0) for place, box in enumerate(boxes)])
        >>> truth.createIndex()
        creating index...
        index created!
        >>> all_found = matches(truth, [dict(box, score=0.5) for box in boxes])
        >>> fewer = matches(truth, [dict(box, score=0.5) for box in boxes[:12]])
        >>> compare({'averaged': all_found}, fewer).is_better
        True
    """
    _check(candidates, base, resamples)
    size = len(base.images)
    generator = np.random.default_rng(seed)
    gains = _gains(candidates, base)
    drawn = np.array([
        _gains(candidates, base, np.bincount(generator.integers(size, size=size), minlength=size))
        for _ in progress(range(resamples))])
    best = int(gains.argmax())
    low, high = np.percentile(drawn[:, best], [2.5, 97.5])
    by_chance = int(np.count_nonzero((drawn - gains).max(axis=1) >= gains[best]))
    return Comparison(list(candidates)[best], float(gains[best]), float(low), float(high),
                      (1 + by_chance) / (1 + resamples))


def _gains(candidates: Mapping[str, Matches], base: Matches, counts: Optional[np.ndarray] = None) -> np.ndarray:
    reached = [mean_average_precision(candidate, counts) for candidate in candidates.values()]
    return np.array(reached) - mean_average_precision(base, counts)


def _check(candidates: Mapping[str, Matches], base: Matches, resamples: int) -> None:
    if not candidates:
        raise ValueError(f'there is nothing to compare with the base: candidates={candidates!r}')
    if resamples < 1:
        raise ValueError(f'images must be drawn once or more often, but resamples={resamples}')
    for name, candidate in candidates.items():
        if not np.array_equal(candidate.images, base.images):
            differing = np.setxor1d(candidate.images, base.images)
            raise ValueError(f'{name!r} and the base have other images: {len(differing)} are in one of them only, such '
                             f'as {differing[0]}')
        if not np.array_equal(candidate.positives, base.positives):
            raise ValueError(f'{name!r} and the base have other ground truth: {candidate.positives.sum()} and '
                             f'{base.positives.sum()} objects')
