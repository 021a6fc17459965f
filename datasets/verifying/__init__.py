"""What `python -m datasets.verify` is made of."""
