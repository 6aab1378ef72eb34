from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmyolo_ema.posthoc.bootstrap import Comparison, compare, matches, mean_average_precision


def truth_of(annotations, images, categories=3):
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=place, height=100, width=100) for place in images],
        categories=[dict(id=place) for place in range(categories)],
        annotations=[dict(annotation, id=1 + place) for place, annotation in enumerate(annotations)],
    )
    truth.createIndex()
    return truth


def scene(seed, images=8, tied=False):
    """Objects of two of three categories and detections near and far; some crowds, and images with nothing in them."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            box = np.append(rng.uniform(0, 60, 2), rng.uniform(10, 40, 2))
            category = int(rng.integers(2))
            objects.append(
                dict(
                    image_id=image,
                    category_id=category,
                    bbox=box.tolist(),
                    area=box[2] * box[3],
                    iscrowd=int(rng.random() < 0.2),
                )
            )
            near = box + rng.normal(size=(rng.integers(0, 4), 4)) * rng.choice([0.3, 2])
            detections += [dict(image_id=image, category_id=category, bbox=moved.tolist()) for moved in near]
        detections += [
            dict(image_id=image, category_id=int(category), bbox=[*rng.uniform(0, 60, 2), 20, 20])
            for category in rng.integers(3, size=rng.integers(0, 4))
        ]
    scores = rng.permutation(len(detections)) / max(len(detections), 1)
    for detection, score in zip(detections, scores.round(1) if tied else scores):
        detection['score'] = float(score)
    return objects, detections


def by_cocoeval(truth, detections, iou_type='bbox'):
    evaluation = COCOeval(truth, truth.loadRes([dict(detection) for detection in detections]), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def value(matched):
    return mean_average_precision(matched, np.ones(len(matched.images), dtype=int))


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('seed', range(5))
def test_each_image_once_is_cocoeval(seed, tied):
    objects, detections = scene(seed, tied=tied)
    truth = truth_of(objects, range(8))
    assert value(matches(truth, detections)) == pytest.approx(by_cocoeval(truth, detections), abs=1e-12)


def test_masks_are_those_of_cocoeval():
    def polygon(x, y, width, height):
        return [[x, y, x + width, y, x, y + height]]

    objects, detections = scene(0)
    truth = truth_of([dict(annotation, segmentation=polygon(*annotation['bbox'])) for annotation in objects], range(8))
    masks = [
        dict(
            image_id=detection['image_id'],
            category_id=detection['category_id'],
            score=detection['score'],
            segmentation=truth.annToRLE(dict(detection, segmentation=polygon(*detection['bbox']))),
        )
        for detection in detections
    ]
    measured = value(matches(truth, masks, iou_type='segm'))
    assert measured == pytest.approx(by_cocoeval(truth, masks, 'segm'), abs=1e-12)
    assert measured != pytest.approx(by_cocoeval(truth, detections))


@settings(max_examples=30)
@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any))
def test_counts_are_repeated_images(seed, counts):
    objects, detections = scene(seed, images=6)
    copies = list(enumerate(np.repeat(range(6), counts).tolist()))
    repeated, redetected = (
        [
            dict(annotation, image_id=copy)
            for copy, image in copies
            for annotation in annotations
            if annotation['image_id'] == image
        ]
        for annotations in (objects, detections)
    )
    measured = mean_average_precision(matches(truth_of(objects, range(6)), detections), np.array(counts))
    # COCO.loadRes fails without detections.
    wanted = by_cocoeval(truth_of(repeated, range(len(copies))), redetected) if redetected else measured
    assert measured == pytest.approx(wanted, abs=1e-12)


def test_best_hundred_of_an_image_count():
    box = dict(image_id=0, category_id=0, bbox=[0, 0, 20, 20])
    truth = truth_of([dict(box, area=400, iscrowd=0)], [0])
    wrong = [dict(box, bbox=[50, 50, 20, 20], score=0.9)]
    assert value(matches(truth, [*wrong * 99, dict(box, score=0.1)])) == pytest.approx(0.01)
    assert value(matches(truth, [*wrong * 100, dict(box, score=0.1)])) == 0


def test_crowd_with_id_0_and_detection_turned_inside_out_are_ignored_as_by_cocoeval():
    objects, detections = scene(0)
    box = dict(image_id=0, category_id=0, bbox=[0, 0, 20, 20])
    truth = truth_of([*objects, dict(box, area=400, iscrowd=1)], range(8))
    truth.dataset['annotations'][-1]['id'] = 0
    truth.createIndex()
    added = [*detections, dict(box, score=2), dict(box, bbox=[90, 90, -9, 9], score=3)]
    assert value(matches(truth, added)) == pytest.approx(by_cocoeval(truth, added), abs=1e-12)
    assert value(matches(truth, added)) == pytest.approx(value(matches(truth, detections)), abs=1e-12)


def test_chosen_categories_count():
    objects, detections = scene(0)
    part = [
        [annotation for annotation in annotations if annotation['category_id'] == 1]
        for annotations in (objects, detections)
    ]
    matched = matches(truth_of(objects, range(8)), detections, category_ids=[1])
    assert value(matched) == pytest.approx(by_cocoeval(truth_of(part[0], range(8)), part[1]), abs=1e-12)


def test_detections_are_left_as_they_are(capsys):
    objects, detections = scene(0)
    truth, before = truth_of(objects, range(8)), deepcopy(detections)
    capsys.readouterr()
    matches(truth, detections)
    assert detections == before
    assert capsys.readouterr().out == ''


def test_no_detections_have_a_precision_of_0():
    objects, _ = scene(0)
    assert value(matches(truth_of(objects, range(8)), [])) == 0


def test_no_objects_have_a_precision_of_minus_1():
    _, detections = scene(0)
    assert value(matches(truth_of([], range(8)), detections)) == -1


SIZE = 60


def detector(seed, share):
    """One object in each image, found in this share of them; the base and others differ by luck alone."""
    rng = np.random.default_rng(seed)
    objects = [dict(image_id=image, category_id=0, bbox=[0, 0, 20, 20], area=400, iscrowd=0) for image in range(SIZE)]
    detections = [
        dict(image_id=image, category_id=0, bbox=[0, 0, 20, 20], score=rng.random())
        for image in range(SIZE)
        if rng.random() < share
    ]
    return matches(truth_of(objects, range(SIZE)), detections)


def test_better_detector_is_better():
    comparison = compare({'worse': detector(1, 0.3), 'better': detector(2, 0.9)}, detector(0, 0.5), resamples=200)
    assert comparison.best == 'better'
    assert comparison.p_value == pytest.approx(1 / 201)
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.difference == pytest.approx(value(detector(2, 0.9)) - value(detector(0, 0.5)))
    assert comparison.is_better


def test_best_of_many_by_luck_is_not_better():
    # One of the two in ten such draws in which the best looks good.
    base, *others = (detector(seed, 0.6) for seed in range(140, 160))
    candidates = {str(place): other for place, other in enumerate(others)}
    comparison = compare(candidates, base, resamples=200)
    alone = compare({comparison.best: candidates[comparison.best]}, base, resamples=200)
    assert alone.is_better
    assert (alone.low, alone.high) == (comparison.low, comparison.high)
    assert comparison.p_value > 0.1
    assert not comparison.is_better


def test_small_p_value_alone_is_not_enough():
    assert Comparison('one', 0.1, {'one': (0.01, 0.2)}, 0.04).is_better
    assert not Comparison('one', 0.1, {'one': (-0.01, 0.2)}, 0.04).is_better


def test_same_detections_are_not_better():
    assert compare({'same': detector(0, 0.6)}, detector(0, 0.6), resamples=50) == ('same', 0, {'same': (0, 0)}, 1)


def test_worse_detector_is_not_better():
    comparison = compare({'worse': detector(1, 0.3)}, detector(0, 0.9), resamples=50)
    assert comparison.high < 0
    assert comparison.p_value > 0.3
    assert not comparison.is_better


def test_seed_decides_the_draws():
    first, again, other = (compare({'one': detector(1, 0.6)}, detector(0, 0.6), 20, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low


def test_progress_sees_each_draw():
    seen = []
    compare({'one': detector(1, 0.6)}, detector(0, 0.6), 7, progress=lambda draws: seen.append(len(draws)) or draws)
    assert seen == [7]


def test_what_cannot_be_compared_is_refused():
    objects, detections = scene(0)
    base, fewer, others = (
        matches(truth_of(objects[:count], range(size)), detections[:1])
        for count, size in ((None, 8), (3, 8), (None, 9))
    )
    with pytest.raises(ValueError, match='nothing to compare: 0 candidates'):
        compare({}, base)
    with pytest.raises(ValueError, match='resamples=0'):
        compare({'same': base}, base, resamples=0)
    with pytest.raises(ValueError, match="'others' and the base have other images or ground truth: 9 and 8 images"):
        compare({'same': base, 'others': others}, base)
    with pytest.raises(ValueError, match=r"'fewer' .* ground truth: 8 and 8 images, with 2 and"):
        compare({'fewer': fewer}, base)
