"""What an average costs, beside the classes of other packages and the least that it could cost."""
