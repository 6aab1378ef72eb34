from benchmarks.gain.training import UPDATES, Case, _config


def test_learning_rates_differ_in_the_decay_of_the_second_half(tmp_path):
    decayed, flat = (_config(Case('nuclei', rate, 0), tmp_path) for rate in ('decayed', 'flat'))
    assert flat.param_scheduler == decayed.param_scheduler[:1]
    assert [scheduler.type for scheduler in decayed.param_scheduler] == ['LinearLR', 'CosineAnnealingLR']
    assert decayed.param_scheduler[1].begin * 2 == decayed.train_cfg.max_epochs
    assert decayed.train_cfg.max_epochs * 160 // decayed.train_dataloader.batch_size == UPDATES


def test_digits_are_trained_and_validated_unflipped(tmp_path):
    cfg = _config(Case('digits', 'flat', 0), tmp_path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.data_root == str(tmp_path / 'digits')
        assert 'RandomFlip' not in str(loader)
    assert cfg.val_evaluator.ann_file == str(tmp_path / 'digits' / 'val.json')
