"""What an average gains in mAP, over the raw weights of the same training."""
