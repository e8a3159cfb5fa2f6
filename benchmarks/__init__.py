"""Speed and memory of the contrastive core, side by side with other implementations; run with python -m."""
