from benchmarks.gain.training import Case, _config


def rates(rate, epochs, folder):
    return _config(Case('nuclei', rate, 0), epochs, folder).param_scheduler


def test_learning_rates_differ_in_the_decay_of_the_second_half(tmp_path):
    decayed, flat = rates('decayed', 8, tmp_path), rates('flat', 8, tmp_path)
    assert flat == decayed[:1]
    assert [decayed[1][key] for key in ('type', 'begin', 'end', 'T_max')] == ['CosineAnnealingLR', 4, 8, 4]


def test_digits_are_trained_and_validated_unflipped(tmp_path):
    cfg = _config(Case('digits', 'flat', 0), 4, tmp_path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.data_root == str(tmp_path / 'digits')
        assert 'RandomFlip' not in str(loader)
    assert cfg.val_evaluator.ann_file == str(tmp_path / 'digits' / 'val.json')
