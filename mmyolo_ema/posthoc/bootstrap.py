"""Whether a detector is better than another by more than chance, from their detections on the same images.

On other validation images of the same kind, COCO's mAP would be another, and so would the difference of two. The
bootstrap imitates other images: it draws as many as there are, with replacement, again and again, and looks how much
the difference changes. An image that is drawn twice counts twice, so detections are matched to the ground truth once,
and each draw only sums up anew.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

_RECALLS = Params('bbox').recThrs


class CategoryMatches(NamedTuple):
    """Which of D detections of a category are right, at each of T thresholds of IoU.

    Attributes:
        images: The place of its image in :attr:`Matches.images`, highest score first, of shape (D,).
        hits: Whether it is right, of shape (T, D).
        ignored: Whether it is left out, as what lies in a crowd is, of shape (T, D).
    """

    images: NDArray[np.int64]
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


class Matches(NamedTuple):
    """How a detector's detections match the ground truth.

    Attributes:
        images: Ids of the images, rising.
        categories: The K categories that have ground truth.
        positives: Number of objects, by category and image, of shape (K, images).
    """

    images: NDArray[np.int64]
    categories: list[CategoryMatches]
    positives: NDArray[np.int64]


class Comparison(NamedTuple):
    """What is known about the best of some detectors, beside a base.

    Attributes:
        best: Name of the candidate with the highest mAP.
        difference: Its mAP less that of the base; positive is better.
        intervals: The 95 % interval of each candidate's difference to the base, by name. That of the best does not know
            that it was chosen.
        p_value: How often the best of so many would look this good by chance, if none were better than the base.
    """

    best: str
    difference: float
    intervals: dict[str, tuple[float, float]]
    p_value: float

    @property
    def low(self) -> float:
        """Lower end of the best candidate's interval."""
        return self.intervals[self.best][0]

    @property
    def high(self) -> float:
        """Upper end of the best candidate's interval."""
        return self.intervals[self.best][1]

    @property
    def is_better(self) -> bool:
        """Whether the best candidate is better than the base by more than chance, at the usual 5 %."""
        return self.p_value < 0.05 and self.low > 0


def matches(
    ground_truth: COCO,
    detections: Sequence[Mapping[str, Any]],
    iou_type: str = 'bbox',
    category_ids: Optional[Sequence[int]] = None,
) -> Matches:
    """Matches detections to the ground truth, as pycocotools' COCOeval does for objects of all sizes.

    Args:
        ground_truth: The annotations.
        detections: COCO results, as MMDetection's CocoMetric writes them to ``<outfile_prefix>.bbox.json``. The best
            100 of an image and category count.
        iou_type: 'bbox' or 'segm'. Defaults to 'bbox'.
        category_ids: The categories that count. Defaults to None: all of the ground truth.

    Raises:
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
    results = [dict(detection) for detection in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results) if results else COCO(), iou_type)
        params = evaluation.params
        params.maxDets, params.areaRng = [100], params.areaRng[:1]
        params.catIds = params.catIds if category_ids is None else category_ids
        evaluation.evaluate()
    size = len(params.imgIds)
    by_category = [evaluation.evalImgs[place * size : (place + 1) * size] for place in range(len(params.catIds))]
    positives = np.array(
        [[np.count_nonzero(image['gtIgnore'] == 0) if image else 0 for image in evaluated] for evaluated in by_category]
    ).reshape(len(by_category), size)
    counted = np.flatnonzero(positives.any(axis=1))
    return Matches(np.array(params.imgIds), [_category(by_category[place]) for place in counted], positives[counted])


def _category(evaluated: Sequence[Optional[dict[str, Any]]]) -> CategoryMatches:
    """Returns what COCOeval has for each image, in COCOeval's order; None is an image with nothing in it."""
    there = [(place, image) for place, image in enumerate(evaluated) if image]
    order = np.argsort(-np.concatenate([image['dtScores'] for _, image in there]), kind='mergesort')
    images = np.concatenate([np.full(len(image['dtScores']), place) for place, image in there])[order]
    matched = np.concatenate([image['dtMatches'] for _, image in there], axis=1)[:, order] != 0
    ignored = np.concatenate([image['dtIgnore'] for _, image in there], axis=1)[:, order].astype(bool)
    return CategoryMatches(images, matched & ~ignored, ignored)


def mean_average_precision(matches: Matches, counts: Optional[NDArray[np.int64]] = None) -> float:
    """Returns COCO's mAP of images that count several times, or not at all; -1 if they have no ground truth.

    Args:
        matches: The matched detections.
        counts: How often each image counts, in the order of ``matches.images``. Defaults to None: once, which gives
            COCO's ``bbox_mAP``.
    """
    if counts is None:
        counts = np.ones(len(matches.images), dtype=int)
    totals = matches.positives @ counts
    precisions = [
        _average_precision(category, counts, total) for category, total in zip(matches.categories, totals) if total
    ]
    return float(np.mean(precisions)) if precisions else -1.0


def _average_precision(category: CategoryMatches, counts: NDArray[np.int64], positives: int) -> float:
    weights = counts[category.images]
    hits = np.cumsum(category.hits * weights, axis=1)
    seen = np.cumsum(~category.ignored * weights, axis=1)
    # COCOeval's own guard against 0 / 0; the last column is for recalls that are not reached.
    precision = np.pad(hits / (seen + np.spacing(1)), ((0, 0), (0, 1)))
    highest_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.array([np.searchsorted(recall, _RECALLS) for recall in hits / positives])
    return float(np.take_along_axis(highest_from, reached, axis=1).mean())


def compare(
    candidates: Mapping[str, Matches],
    base: Matches,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Comparison:
    """Tells whether the best of some detectors is better than a base by more than chance: a paired bootstrap.

    Each draw of images is the same for all detectors, so that their difference is known far better than either mAP.

    Who tries ten averages and shows the best had ten chances to be lucky. So the p value compares the best gain with
    the best that as many candidates get by the luck of the draw: White, "A Reality Check for Data Snooping", 2000. Give
    all that were tried. Only the luck of the validation images is known, and not that of a training.

    Args:
        candidates: The matches of the detectors that were tried, by name.
        base: Those of the detector that they shall be better than, on the same images.
        resamples: How often images are drawn. The smallest p value is ``1 / (1 + resamples)``. Defaults to 1000.
        seed: Of the draws. Defaults to 0.
        progress: Wraps the draws, as tqdm does. Defaults to showing nothing.

    Raises:
        ValueError: If there are no candidates or draws, or if one has other images or ground truth than the base.
    """
    if not candidates or resamples < 1:
        raise ValueError(f'there is nothing to compare: {len(candidates)} candidates, resamples={resamples}')
    for name, candidate in candidates.items():
        if not all(map(np.array_equal, (candidate.images, candidate.positives), (base.images, base.positives))):
            raise ValueError(
                f'{name!r} and the base have other images or ground truth: {len(candidate.images)} and '
                f'{len(base.images)} images, with {candidate.positives.sum()} and {base.positives.sum()} '
                'objects'
            )
    size = len(base.images)
    generator = np.random.default_rng(seed)
    gains = _gains(candidates, base)
    drawn = np.array(
        [
            _gains(candidates, base, np.bincount(generator.integers(size, size=size), minlength=size))
            for _ in progress(range(resamples))
        ]
    )
    best = int(gains.argmax())
    ends = zip(*np.percentile(drawn, [2.5, 97.5], axis=0).tolist())
    by_chance = int(np.count_nonzero((drawn - gains).max(axis=1) >= gains[best]))
    return Comparison(
        list(candidates)[best], float(gains[best]), dict(zip(candidates, ends)), (1 + by_chance) / (1 + resamples)
    )


def _gains(
    candidates: Mapping[str, Matches], base: Matches, counts: Optional[NDArray[np.int64]] = None
) -> NDArray[np.float64]:
    precisions = [mean_average_precision(matched, counts) for matched in candidates.values()]
    return np.array(precisions) - mean_average_precision(base, counts)
